"""What two robust accuracies can and cannot say about each other.

The criterion is overlap of the two 95 % intervals. It is stricter than a test of the difference: intervals that do
not overlap differ; intervals that do may still differ, only these n images do not show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.report.figures import NBSP, count, interval, number, percent, points
from pipeline.report.measurement import ATTACKS, Measurement, attack_order

Outcome = Literal["higher", "lower", "indistinct", "unlike", "unknown"]


@dataclass(frozen=True)
class Comparison:
    """The outcome for `first` as seen from `second`, with the sentence that says it."""

    first: Measurement
    second: Measurement
    outcome: Outcome
    words: str

    @property
    def difference(self) -> float | None:
        """First minus second, as a fraction."""
        if self.first.robust is None or self.second.robust is None:
            return None
        return self.first.robust - self.second.robust


def compare(first: Measurement, second: Measurement) -> Comparison:
    """Compare two figures; those under different conditions are refused, and the condition is named.

    One difference may stand: the lower figure comes from a shorter attack. The longer one, of which the shorter is a
    part, could only lower it further, so that the order of the two is certain all the same.
    """
    unlike = _differing(first, second)
    if unlike and first.under[:-1] != second.under[:-1]:
        return Comparison(first, second, "unlike", f"not comparable: {unlike}")
    bounds = [number(value) for value in (first.low, first.high, second.low, second.high)]
    if None in (first.robust, second.robust, *bounds):
        return Comparison(first, second, "unknown", "no interval recorded, so nothing can be concluded")
    found = _by_overlap(first, second)
    if unlike and not _holds_all_the_same(found):
        return Comparison(first, second, "unlike", f"not comparable: {unlike}")
    return found


def overlaps(first: Measurement, second: Measurement) -> bool:
    """Whether the two intervals share a point; a missing bound counts as the end of the scale."""
    low, high = max(first.low or 0.0, second.low or 0.0), min(_top(first), _top(second))
    return low <= high


def _top(row: Measurement) -> float:
    return 1.0 if row.high is None else row.high


def _by_overlap(first: Measurement, second: Measurement) -> Comparison:
    difference = (first.robust or 0.0) - (second.robust or 0.0)
    gap = points(difference)
    if overlaps(first, second):
        return Comparison(
            first, second, "indistinct", f"not distinguishable at {_sizes(first, second)} ({gap}{NBSP}points)"
        )
    outcome: Outcome = "higher" if difference > 0 else "lower"
    return Comparison(first, second, outcome, f"{outcome} by {gap.lstrip('+−')} points; the intervals do not overlap")


def _holds_all_the_same(found: Comparison) -> bool:
    if found.outcome not in ("higher", "lower"):
        return False
    over, under = (found.first, found.second) if found.outcome == "higher" else (found.second, found.first)
    known = over.attack in ATTACKS and under.attack in ATTACKS
    return known and attack_order(under.attack) > attack_order(over.attack)


def _sizes(first: Measurement, second: Measurement) -> str:
    sizes = dict.fromkeys((first.n, second.n))
    return " and ".join(f"n{NBSP}={NBSP}{count(n)}" for n in sizes)


def _differing(first: Measurement, second: Measurement) -> str:
    names = ("data set", "resolution", "norm", "radius", "attack")
    pairs = zip(names, first.under, second.under, strict=True)
    return "; ".join(f"{name} {one} against {other}" for name, one, other in pairs if one != other)


def figure_words(measured: Measurement) -> str:
    """A figure with its interval: "68.0 % [58.3–76.3]"."""
    return f"{percent(measured.robust)} [{interval(measured.low, measured.high)}]"
