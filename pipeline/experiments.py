"""The small experiments, run one after the other, and the page that links their reports.

The page and copies of the reports lie in the home: `experiments.html` and `experiments/<recipe>.html`. It needs nothing
beside them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.report.markup import Content, Markup, element, join
from components.report.page import head
from components.store.digests import write_atomically
from components.store.places import Places
from pipeline.recipe import Recipe, load, names

if TYPE_CHECKING:
    from pipeline.local import Outcome

PAGE, FOLDER = "experiments.html", "experiments"
_SMALL = "-small"

Runner = Callable[[Recipe], "Outcome"]
"""Runs a recipe in the home and says how it ended."""


@dataclass(frozen=True)
class Entry:
    """One experiment as it ended.

    Attributes:
        report: its page's copy; None where it has none.
        answer: its `experiment.json`, empty where it has none.
        problem: why it failed; empty where it did not.
    """

    name: str
    summary: str
    seconds: float
    report: Path | None = None
    answer: dict[str, Any] | None = None
    problem: str = ""


def small() -> list[str]:
    """The names of the experiments that run here in minutes."""
    return [name for name, path in names().items() if path.parent.name == FOLDER and name.endswith(_SMALL)]


def load_all(recipes: Sequence[str]) -> list[Recipe]:
    """The recipes of these names, all small experiments where none is given; all before the first runs.

    Raises:
        UserError: one that cannot be loaded.
    """
    return [load(name) for name in recipes or small()]


def run_all(recipes: Sequence[Recipe], places: Places, run: Runner) -> tuple[Path, list[Entry]]:
    """Runs the recipes and writes the page; one that fails is said there and does not keep the others from running.

    Args:
        run: as `pipeline.local.run_here` does.

    Returns:
        The page's path, and one entry a recipe in their order.

    Raises:
        KeyboardInterrupt: as `run` raises it; no page is written then.
    """
    entries = [_one(recipe, places, run) for recipe in recipes]
    return write_atomically(places.home / PAGE, render(entries, places.home)), entries


def _one(recipe: Recipe, places: Places, run: Runner) -> Entry:
    start = time.monotonic()
    try:
        outcome = run(recipe)
    except UserError as error:
        return Entry(recipe.name, recipe.head.summary, time.monotonic() - start, problem=str(error))
    seconds = time.monotonic() - start
    report = Path(outcome.report) if outcome.report else None
    if not outcome.ok or report is None:
        return Entry(recipe.name, recipe.head.summary, seconds, problem=_problem(outcome))
    copy = places.home / FOLDER / f"{recipe.name}.html"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(report, copy)
    return Entry(recipe.name, recipe.head.summary, seconds, copy, _answer(report))


def _answer(report: Path) -> dict[str, Any] | None:
    beside = report.with_name("experiment.json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None


def _problem(outcome: Outcome) -> str:
    failed = outcome.failed()
    if failed is None:
        return "it has no report" if outcome.ok else f"the pipeline stopped before any stage failed; log: {outcome.log}"
    return f"stage {failed.get('stage', '')} failed: {failed.get('error', '')}; log: {failed.get('log', outcome.log)}"


def render(entries: Sequence[Entry], home: Path) -> str:
    """The page as text; links are relative to `home`."""
    failed = [entry.name for entry in entries if entry.problem]
    warning = element("p", f"Not complete: {', '.join(failed)} failed.", class_="warning") if failed else None
    minutes = sum(entry.seconds for entry in entries) / 60
    counted = "1 experiment" if len(entries) == 1 else f"{len(entries)} experiments"
    body = element(
        "body",
        element(
            "header",
            element("p", "Robustrain", class_="eyebrow"),
            element("h1", "Experiments"),
            element(
                "p",
                "On small built-in images, with short trainings: each shows how its question is asked and answered, "
                "and settles nothing about ImageNet. The recipes of the same names without “-small” ask it there.",
                class_="about",
            ),
            element("p", f"{counted} · {minutes:.1f} minutes", class_="run"),
            warning,
        ),
        element("main", [_section(entry, home) for entry in entries]),
    )
    return "<!DOCTYPE html>\n" + element("html", head("experiments"), body, lang="en") + "\n"


def _section(entry: Entry, home: Path) -> Markup:
    answer = entry.answer or {}
    said: list[Content] = [element("p", str(answer.get("question") or entry.summary), class_="note")]
    if entry.problem:
        said.append(element("p", entry.problem, class_="warning"))
    points = element("ul", [element("li", str(words)) for words in answer.get("summary", [])])
    said.append(element("div", points, class_="limits") if answer.get("summary") else None)
    if entry.report is not None:
        link = element("a", "The whole report", href=entry.report.relative_to(home).as_posix())
        said.append(element("p", link, f" · {entry.seconds:.0f} s"))
    return element("section", element("h2", entry.name), join(said), id=entry.name)
