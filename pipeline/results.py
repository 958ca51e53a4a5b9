"""Every robust accuracy of a pipeline run, with its conditions, read from MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.result_rows import RESULTS, ResultRow, WorstCaseRow, read_results, strongest
from components.store.settings import StorageSettings


@dataclass(frozen=True)
class Results:
    """The results of one pipeline run.

    Attributes:
        rows: one for each training stage, data set, resolution, norm and radius, in the order of the recipe.
        worst_case: worst cases over the norms, of every evaluation.
        report: path of the HTML page; empty if there is none.
        last_complete: id of the newest complete pipeline run, if that is another one than this.
        plans_report: whether the recipe has a `report` stage.
        removed: stages whose runs were removed from MLflow; their rows are missing.
    """

    run_id: str
    name: str
    state: str
    rows: list[ResultRow]
    worst_case: list[WorstCaseRow]
    report: str
    last_complete: str = ""
    plans_report: bool = False
    removed: tuple[str, ...] = ()

    def notice(self) -> str:
        """A sentence if this run is not complete, lost stages, or has no figures; otherwise empty."""
        this_run = f"run {self.run_id[:8]} of {self.name}"
        if self.removed:
            return f"{this_run}: stages whose runs were removed from MLflow are left out: {', '.join(self.removed)}."
        if self.state != "complete":
            empty = "" if self.rows else " and has no figures"
            return f"{this_run} is not complete (state: {self.state}){empty}. {self._next_steps()}"
        return "" if self.rows else f"{this_run} is complete and measured no robust accuracy."

    def no_report(self) -> UserError:
        """The error for a run without a page: the recipe has no such stage, or the run did not reach it."""
        if not self.plans_report:
            remedy = "add a `report` stage to its recipe"
            return UserError("this run has no report", where=f"run {self.run_id}", remedy=remedy)
        what = f"this run has not reached its report stage (state: {self.state})"
        return UserError(what, where=f"run {self.run_id}", remedy=self._next_steps().rstrip("."))

    def _next_steps(self) -> str:
        finish = f"Start it again to finish it: robustrain run {self.name}"
        if not self.last_complete:
            return f"{finish}."
        return f"{finish}; or look at the newest complete run: --run {self.last_complete[:8]}."

    def plain(self) -> list[dict[str, Any]]:
        """The documented fields of the rows, for JSON: accuracies are fractions, `interval` is [low, high] at 95 %."""
        return [row.plain() for row in self.rows]

    def csv(self) -> str:
        """Returns the fields of `plain` as CSV with a header line; `interval` has two columns."""
        import csv
        import io

        text = io.StringIO()
        columns = [name for name in ResultRow.model_fields if name not in ("details", "interval")]
        writer = csv.DictWriter(text, [*columns, "interval_low", "interval_high"], lineterminator="\n")
        writer.writeheader()
        for row in self.plain():
            low, high = row.pop("interval")
            writer.writerow({**row, "interval_low": low, "interval_high": high})
        return text.getvalue()


def list_runs(storage: StorageSettings, limit: int) -> list[dict[str, Any]]:
    """Returns the newest pipeline runs first, as `Tracking.last_pipeline_runs` describes them.

    Raises:
        UserError: there are none.
    """
    from components.store.tracking import Tracking

    found = [] if storage.is_fresh else Tracking(storage).last_pipeline_runs(limit)
    if not found:
        raise _no_run(storage)
    return found


def _no_run(storage: StorageSettings) -> UserError:
    return UserError("no run is known here", where=str(storage.home), remedy="start one: `robustrain run quickstart`")


def read(storage: StorageSettings, run: str = "") -> Results:
    """Reads the results of a pipeline run.

    Args:
        storage: the home, where the runs are recorded.
        run: the pipeline run's MLflow id or its beginning; empty: the newest run.

    Raises:
        UserError: there is no such run, or it left results in a form that this version does not read.
    """
    from components.store.tracking import Tracking

    if storage.is_fresh:
        raise _no_run(storage)
    tracking = Tracking(storage)
    runs = tracking.last_pipeline_runs(200)
    chosen = _choose(runs, run, storage)
    recipe = tracking.recipe_of(chosen["run_id"])
    rows: list[ResultRow] = []
    worst: list[WorstCaseRow] = []
    report = ""
    stages = tracking.stages_of(chosen["run_id"])
    removed = tuple(name for name, (run_id, _) in stages.items() if not tracking.known(run_id))
    for name, (run_id, _) in stages.items():
        if name in removed:
            continue
        artifacts = tracking.artifacts(tracking.client.get_run(run_id))
        if document := artifacts.read_json(RESULTS):
            found = read_results(document, where=name).with_stage_name(_model_of(name, recipe))
            rows += found.rows
            worst += found.union
        page = artifacts.fetch("report.html")
        report = str(page) if page else report
    others = [other["run_id"] for other in runs if other["state"] == "complete" and other != chosen]
    return Results(
        run_id=chosen["run_id"],
        name=chosen["name"],
        state=chosen["state"],
        rows=sorted(strongest(rows), key=lambda row: _position(row, recipe)),
        worst_case=worst,
        report=report,
        last_complete=others[0] if others else "",
        plans_report=any(entry.get("kind") == "report" for entry in recipe.get("stages", {}).values()),
        removed=removed,
    )


def _model_of(evaluation: str, recipe: Mapping[str, Any]) -> str:
    """The training stage that the recipe's `evaluation` measures; empty if the recipe does not say."""
    model = recipe.get("stages", {}).get(evaluation, {}).get("model", "")
    return model if isinstance(model, str) else ""


def _choose(runs: list[dict[str, Any]], run: str, storage: StorageSettings) -> dict[str, Any]:
    fitting = [r for r in runs if r["run_id"].startswith(run)]
    if not fitting:
        raise UserError(
            "no pipeline run with this id" if run else "no pipeline run is known here",
            where=str(storage.home),
            remedy="`robustrain runs` lists them" if run and runs else "start one: `robustrain run quickstart`",
        )
    return fitting[0]


def _position(row: ResultRow, recipe: Mapping[str, Any]) -> tuple[int, int, str, float]:
    stages = list(recipe.get("stages", {}))
    position = stages.index(row.stage) if row.stage in stages else len(stages)
    return position, row.resolution, row.norm, row.eps
