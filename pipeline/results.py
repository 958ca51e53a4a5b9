"""Every robust accuracy of a pipeline run, with its conditions, out of MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.report.named import rows_here
from components.store.places import Places

KEYS = (
    "stage",
    "name",
    "model",
    "stem",
    "dataset",
    "resolution",
    "norm",
    "eps",
    "attack",
    "n",
    "clean_accuracy",
    "robust_accuracy",
    "interval",
)
"""The fields of one result; accuracies are fractions, `interval` is [low, high] of the robust accuracy, 95 %."""


@dataclass(frozen=True)
class Results:
    """One pipeline run: its rows, one a (stage, resolution, norm, radius), and where the report lies."""

    run_id: str
    name: str
    state: str
    rows: list[dict[str, Any]]
    worst_case: list[dict[str, Any]]
    report: str
    last_complete: str = ""
    """Id of the newest pipeline run that is complete, where that is another one than this."""
    plans_report: bool = False
    """Whether its recipe has a `report` stage."""

    def notice(self) -> str:
        """A sentence where this run is not complete or has no figures; empty where there is nothing to say."""
        here = f"run {self.run_id[:8]} of {self.name}"
        if self.state != "complete":
            empty = "" if self.rows else " and has no figures"
            return f"{here} is not complete (it says: {self.state}){empty}. {self._elsewhere()}"
        return "" if self.rows else f"{here} is complete and measured no robust accuracy."

    def no_report(self) -> UserError:
        """What to say where there is no page: the recipe has no such stage, or the run did not come that far."""
        if not self.plans_report:
            remedy = "add a `report` stage to its recipe"
            return UserError("this run has no report", where=f"run {self.run_id}", remedy=remedy)
        what = f"this run has not come as far as its report; it says: {self.state}"
        return UserError(what, where=f"run {self.run_id}", remedy=self._elsewhere().rstrip("."))

    def _elsewhere(self) -> str:
        finish = f"Start it again to finish it: robustrain run {self.name}"
        return (
            f"{finish}; or look at the newest complete run: --run {self.last_complete[:8]}."
            if self.last_complete
            else f"{finish}."
        )

    def plain(self) -> list[dict[str, Any]]:
        """The rows with the documented keys only."""
        return [{key: row.get(key) for key in KEYS} for row in self.rows]


def read(places: Places, run: str = "") -> Results:
    """The results of a pipeline run.

    Args:
        run: the parent's MLflow id or its beginning; empty for the newest one.

    Raises:
        UserError: there is no such run.
    """
    from components.store.tracking import Tracking

    if places.is_fresh:
        raise UserError("no run is known here", where=str(places.home), remedy="start one: `robustrain run quickstart`")
    tracking = Tracking(places)
    runs = tracking.last_pipeline_runs(200)
    chosen = _choose(runs, run, places)
    recipe = tracking.recipe_of(chosen["run_id"])
    rows: list[dict[str, Any]] = []
    worst: list[dict[str, Any]] = []
    report = ""
    for name, (run_id, _) in tracking.stages_of(chosen["run_id"]).items():
        artifacts = tracking.artifacts(tracking.client.get_run(run_id))
        found = artifacts.read_json("results/results.json") or {}
        split = {"split": found.get("conditions", {}).get("split")}
        named = rows_here(name, found.get("rows", []), recipe)
        rows += [{**row, "details": {**split, **row.get("details", {})}} for row in named]
        worst += [{**row, "evaluation": name} for row in rows_here(name, found.get("union", []), recipe)]
        page = artifacts.fetch("report.html")
        report = str(page) if page else report
    rows = sorted(strongest(rows), key=lambda row: _order(row, recipe))
    others = [other["run_id"] for other in runs if other["state"] == "complete" and other != chosen]
    return Results(
        run_id=chosen["run_id"],
        name=chosen["name"],
        state=chosen["state"],
        rows=rows,
        worst_case=worst,
        report=report,
        last_complete=others[0] if others else "",
        plans_report=any(entry.get("kind") == "report" for entry in recipe.get("stages", {}).values()),
    )


def strongest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a (stage, resolution, norm, radius): of two, the one by the stronger attack, then on more images.

    A sweep passes the training resolution too, with a cheaper attack than the headline's; that figure is an upper bound
    of the same quantity and says nothing new beside it. The report shows both.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("name", "dataset", "resolution", "norm", "eps"))
        if key not in kept or _strength(row) > _strength(kept[key]):
            kept[key] = row
    return list(kept.values())


def _strength(row: dict[str, Any]) -> tuple[int, int]:
    known = ("APGD-CE", "APGD-CE+APGD-T", "AutoAttack")
    attack = row.get("attack")
    return known.index(attack) if attack in known else -1, int(row.get("n") or 0)


def _choose(runs: list[dict[str, Any]], run: str, places: Places) -> dict[str, Any]:
    fitting = [r for r in runs if r["run_id"].startswith(run)]
    if not fitting:
        raise UserError(
            "no pipeline run with this id" if run else "no pipeline run is known here",
            where=str(places.home),
            remedy="start one: `robustrain run quickstart`",
        )
    return fitting[0]


def _order(row: dict[str, Any], recipe: dict[str, Any]) -> tuple[int, int, str, float]:
    stages = list(recipe.get("stages", {}))
    place = stages.index(row["name"]) if row.get("name") in stages else len(stages)
    return place, int(row.get("resolution") or 0), str(row.get("norm")), float(row.get("eps") or 0)
