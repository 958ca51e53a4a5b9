"""The output of every benchmark: one row per figure, with its goal, as a table or as JSON."""

from __future__ import annotations

import json
from typing import TypedDict


class Row(TypedDict):
    """One figure; these are exactly the keys of the JSON form.

    `goal` is None if none was set, `measured` if this machine cannot measure it, `met` if either is missing.
    """

    name: str
    goal: float | None
    measured: float | None
    unit: str
    met: bool | None


def row(name: str, measured: float | None, unit: str, *, least: float | None = None, most: float | None = None) -> Row:
    """Returns a figure that should be at least `least` and at most `most`; with both, the goal shown is their mean."""
    limits = [limit for limit in (least, most) if limit is not None]
    met = None
    if limits and measured is not None:
        met = (least is None or measured >= least) and (most is None or measured <= most)
    return {
        "name": name,
        "goal": round(sum(limits) / len(limits), 4) if limits else None,
        "measured": None if measured is None else round(measured, 4),
        "unit": unit,
        "met": met,
    }


def show(rows: list[Row], *, as_json: bool) -> None:
    """Prints the rows."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(one["name"]) for one in rows)
    for one in rows:
        measured = "not measured" if one["measured"] is None else f"{one['measured']:.3f}"
        goal = "" if one["goal"] is None else f"goal {one['goal']:g}"
        verdict = {True: "met", False: "NOT MET", None: ""}[one["met"]]
        print(f"{one['name']:<{width}}  {measured:>12} {one['unit']:<10} {goal:<11} {verdict}".rstrip())
