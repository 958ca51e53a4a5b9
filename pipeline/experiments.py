"""Runs the small experiments one after the other and writes a page that links their reports.

The page is `experiments.html` in the home, with copies of the reports in `experiments/<recipe>.html`. It needs no other
file.
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
from components.files import write_atomically
from components.report.page import render_template
from components.store.settings import StorageSettings
from pipeline.recipe import Recipe, load, names

if TYPE_CHECKING:
    from pipeline.local import Outcome

PAGE, FOLDER = "experiments.html", "experiments"
_SMALL = "-small"

Runner = Callable[[Recipe], "Outcome"]
"""Runs a recipe in the home and returns how it ended."""


@dataclass(frozen=True)
class Entry:
    """One experiment as it ended.

    Attributes:
        report: the copy of its page; None if it has none.
        answer: its `experiment.json`; None if it has none.
        problem: why it failed; empty if it did not.
    """

    name: str
    summary: str
    seconds: float
    report: Path | None = None
    answer: dict[str, Any] | None = None
    problem: str = ""


def small() -> list[str]:
    """The names of the experiments that run in minutes."""
    return [name for name, path in names().items() if path.parent.name == FOLDER and name.endswith(_SMALL)]


def load_all(recipes: Sequence[str]) -> list[Recipe]:
    """Loads the recipes with these names, or all small experiments, before the first one runs.

    Raises:
        UserError: a recipe cannot be loaded.
    """
    return [load(name) for name in recipes or small()]


def run_all(recipes: Sequence[Recipe], storage: StorageSettings, run: Runner) -> tuple[Path, list[Entry]]:
    """Runs the recipes and writes the page. The page names a recipe that fails; the others still run.

    Args:
        recipes: in this order.
        storage: the home, which gets the page.
        run: runs a recipe, such as `pipeline.local.run_here`.

    Returns:
        The page's path, and one entry for each recipe.

    Raises:
        KeyboardInterrupt: raised by `run`; no page is written then.
    """
    entries = [_one(recipe, storage, run) for recipe in recipes]
    return write_atomically(storage.home / PAGE, render(entries, storage.home)), entries


def _one(recipe: Recipe, storage: StorageSettings, run: Runner) -> Entry:
    start = time.monotonic()
    try:
        outcome = run(recipe)
    except UserError as error:
        return Entry(recipe.name, recipe.head.summary, time.monotonic() - start, problem=str(error))
    seconds = time.monotonic() - start
    report = Path(outcome.report) if outcome.report else None
    if not outcome.ok or report is None:
        return Entry(recipe.name, recipe.head.summary, seconds, problem=_problem(outcome))
    copy = storage.home / FOLDER / f"{recipe.name}.html"
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
    """Returns the page as text; links are relative to `home`."""
    return render_template(
        "experiments.html.j2",
        counted="1 experiment" if len(entries) == 1 else f"{len(entries)} experiments",
        minutes=sum(entry.seconds for entry in entries) / 60,
        failed=[entry.name for entry in entries if entry.problem],
        entries=[_shown(entry, home) for entry in entries],
    )


def _shown(entry: Entry, home: Path) -> dict[str, Any]:
    """What the template shows of an experiment."""
    answer = entry.answer or {}
    return {
        "name": entry.name,
        "question": answer.get("question") or entry.summary,
        "summary": answer.get("summary", []),
        "problem": entry.problem,
        "link": entry.report.relative_to(home).as_posix() if entry.report else "",
        "seconds": entry.seconds,
    }
