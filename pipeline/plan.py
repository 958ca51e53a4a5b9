"""The decision for every stage, without side effects: would it be reused, continued or run, and its last duration.

The same fingerprints as `pipeline.stage_runner` computes, because they follow from the recipe and the data alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.evaluate.config import EvaluateConfig
from components.store.settings import StorageSettings
from components.threats import ATTACKS
from pipeline.recipe import Recipe, Stage
from pipeline.stage_runner import fingerprint_of


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Attributes:
        action: `reuse`, `continue` or `run`.
        run_id: the run that would be reused or continued.
        seconds: the last duration of a stage of that name in this tracking store; None if it has never run.
    """

    name: str
    kind: str
    action: str
    fingerprint: str
    run_id: str
    why: str
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)


def check_data(recipe: Recipe) -> None:
    """Refuses data that a stage could not use, and attacks that need more classes, before anything runs.

    The sources are read on this machine; on a cluster they may be somewhere else.

    Raises:
        UserError: names the stage, or all stages whose attacks need more classes.
    """
    classes: dict[str, int] = {}
    for stage in recipe.stages.values():
        try:
            found = stage.kind.source_classes(stage.config)
        except UserError as error:
            raise error.within(f"stages.{stage.name}") if error.where == "source" else error from None
        if found is not None:
            classes[stage.name] = len(found)
    short = [line for name, number in classes.items() if (line := _too_few_classes(recipe, name, number))]
    if short:
        remedy = "set `attack: apgd-ce` in these threats; with so few classes no result may be called AutoAttack"
        raise UserError("; ".join(short), remedy=remedy)


def _too_few_classes(recipe: Recipe, data: str, classes: int) -> str:
    """Returns which evaluations on a data set have attacks that need more classes; an empty string if none has."""
    found: dict[str, list[str]] = {}
    fewest = 0
    for stage in recipe.stages.values():
        if stage.parents.get("data") == data and isinstance(stage.config, EvaluateConfig):
            attacks = {ATTACKS[threat.attack].title: ATTACKS[threat.attack] for threat in stage.config.threats}
            short = {title: attack for title, attack in attacks.items() if classes < attack.fewest_classes}
            if short:
                found[stage.name] = list(short)
                fewest = max(fewest, *(attack.fewest_classes for attack in short.values()))
    listed = ", ".join(f"{name} ({', '.join(titles)})" for name, titles in found.items())
    return f"{data} has {classes} classes, and attacks need at least {fewest}: {listed}" if found else ""


def fingerprints(recipe: Recipe, cache: Path) -> dict[str, str]:
    """Returns the fingerprint of every stage of a recipe, by name."""
    known: dict[str, str] = {}
    for stage in recipe.stages.values():
        parents = {role: known[name] for role, name in stage.parents.items()}
        known[stage.name] = fingerprint_of(stage.kind.name, stage.config, parents, recipe.head.seed, cache)
    return known


def plan(recipe: Recipe, storage: StorageSettings, again: tuple[str, ...] = ()) -> list[Planned]:
    """Returns what `robustrain run` would do now, stage by stage.

    Reads MLflow if there is one, and changes no run. It keeps the digest of a folder of images in the cache.

    Raises:
        UserError: as `check_data`, or the data cannot be read.
    """
    check_data(recipe)
    prints = fingerprints(recipe, storage.cache)
    if storage.is_fresh:
        return [_first_time(stage, prints[stage.name]) for stage in recipe.stages.values()]
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    behind = kept_behind(recipe, again)
    return [_decided(stage, prints[stage.name], tracking, again, behind) for stage in recipe.stages.values()]


def kept_behind(recipe: Recipe, again: tuple[str, ...]) -> dict[str, list[str]]:
    """Returns stage -> those of `again` that it depends on, for stages that are not in `again` themselves.

    Their fingerprints do not change when a stage before them is run once more, so finished ones are reused.
    """
    before: dict[str, list[str]] = {}
    for stage in recipe.stages.values():
        found = [name for parent in stage.parents.values() for name in (parent, *before[parent]) if name in again]
        before[stage.name] = list(dict.fromkeys(found))
    return {name: found for name, found in before.items() if found and name not in again}


def _first_time(stage: Stage, fingerprint: str) -> Planned:
    return Planned(stage.name, stage.kind.name, "run", fingerprint, "", "no run of it is known here", None)


def _decided(
    stage: Stage, fingerprint: str, tracking: Any, again: tuple[str, ...], behind: dict[str, list[str]]
) -> Planned:
    found = tracking.find(fingerprint, deep=False)
    action = {"complete": "reuse", "interrupted": "continue", "absent": "run"}[found.state]
    why = {"reuse": f"complete in run {found.run_id[:8]}", "continue": found.reason}.get(action, "")
    if action == "reuse" and stage.name in again:
        action, why = "run", "asked for again"
    elif action == "reuse" and stage.name in behind:
        why += f", though {', '.join(behind[stage.name])} runs again: its fingerprint is the same"
    if not why:
        why = found.reason or "no finished run has this fingerprint"
    seconds = tracking.last_duration(stage.name)
    return Planned(stage.name, stage.kind.name, action, fingerprint, found.run_id, why, seconds)
