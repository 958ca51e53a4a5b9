"""The data behind a report: each stage as it ended, and each robust accuracy with the evaluation that measured it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from components.result_rows import Conditions, ResultRow, RobustImages, Verdicts, WorstCaseRow
from components.stage_records import GalleryEntry
from components.threats import radius_text, same_radius

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

FROM_FILE = "file:"
"""Beginning of an `init` that imports weights from a file."""


@dataclass(frozen=True)
class ReportStage:
    """A stage of the pipeline, finished or not. The page leaves out whatever a stage lacks.

    Attributes:
        name, kind: of the stage.
        run_id: its MLflow run.
        fingerprint: hash of its configuration, parents and data.
        state: "ran", "reused", "failed" or another word, shown as it is.
        config, result: as the stage recorded them.
        history: one entry for each epoch of a training stage, see `components.stage_records.HistoryEntry`.
        rows, worst_cases, conditions, verdicts: the documents of an evaluation.
        gallery: adversarial images with the paths of their pictures.
        spectra: `spectra.json` of an evaluation.
        data: fingerprint of the data set that was read.
    """

    name: str
    kind: str
    run_id: str = ""
    fingerprint: str = ""
    state: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[ResultRow] = ()
    worst_cases: Sequence[WorstCaseRow] = ()
    conditions: Conditions | None = None
    gallery: Sequence[GalleryEntry] = ()
    verdicts: Verdicts | None = None
    spectra: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""

    @property
    def failed(self) -> bool:
        """Whether the stage ended without its outputs."""
        return self.state.lower() in {"failed", "error", "cancelled", "interrupted"}

    @property
    def is_sweep(self) -> bool:
        """Whether this evaluation was asked for several test resolutions."""
        return "resolutions" in self.config

    @property
    def measured_model(self) -> str:
        """Name of the training stage whose model an evaluation measured."""
        return str(self.config.get("model") or self.name)

    @property
    def starts_from(self) -> str:
        """What a training stage took its weights from: a stage's name, `random`, `timm:...` or `file:...`."""
        return str(self.config.get("init") or "")

    @property
    def trained_threat(self) -> tuple[str, float] | None:
        """(norm, radius) that a training stage trained under; None if there was no attack."""
        attack = self.config.get("attack")
        if not isinstance(attack, Mapping) or attack.get("norm") is None or attack.get("eps") is None:
            return None
        return str(attack["norm"]), float(attack["eps"])

    @property
    def trained_under_attack(self) -> bool | None:
        """Whether a training stage had an attack; None if its weights came from a file, and it is not known."""
        if self.trained_threat is None and self.starts_from.startswith(FROM_FILE):
            return None
        return self.trained_threat is not None

    @property
    def result_names(self) -> list[str]:
        """Names of the training stages in the rows."""
        return list(dict.fromkeys(row.stage for row in self.rows))


@dataclass(frozen=True)
class Measurement:
    """One robust accuracy with its evaluation.

    Attributes:
        row: the figure and its conditions.
        source: the evaluation that measured it.
        training: the stage that trained the model; None if it is not a part of this run.
        base: the stage that `training` took its weights from, likewise.
    """

    row: ResultRow
    source: ReportStage = field(repr=False)
    training: ReportStage | None = field(default=None, repr=False)
    base: ReportStage | None = field(default=None, repr=False)

    @cached_property
    def images(self) -> RobustImages | None:
        """The images behind the figure; None if the evaluation left no verdicts for it."""
        return self.source.verdicts.robust(self.row) if self.source.verdicts else None

    @property
    def stage(self) -> str:
        """Name of the training stage."""
        return self.row.stage

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the robust accuracy; `high` is the upper end."""
        return self.row.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval of the robust accuracy."""
        return self.row.interval[1]

    @property
    def setting(self) -> tuple[str, int, str, str, str]:
        """(data set, resolution, norm, radius, attack): must be equal for two measurements to be compared."""
        return self.row.dataset, self.row.resolution, self.row.norm, radius_text(self.row.eps), self.row.attack

    @property
    def trained_under_attack(self) -> bool | None:
        """Whether the model was trained under attack; None if that is not known."""
        return self.training.trained_under_attack if self.training else None

    @property
    def fine_tuned_to_another_threat(self) -> bool | None:
        """Whether adversarial training was continued, on the same data, under another norm or radius.

        None if the training started from a file, so that it is not known what it continued.
        """
        training = self.training
        if training and training.trained_under_attack and training.starts_from.startswith(FROM_FILE):
            return None
        return is_fine_tuned_to_another_threat(training, self.base)


def is_fine_tuned_to_another_threat(stage: ReportStage | None, base: ReportStage | None) -> bool:
    """Whether `stage` continues the adversarial training of `base` on the same data under another norm or radius."""
    if stage is None or base is None or stage.config.get("data") != base.config.get("data"):
        return False
    ours, theirs = stage.trained_threat, base.trained_threat
    return ours is not None and theirs is not None and not is_threat(ours, *theirs)


def is_threat(threat: tuple[str, float] | None, norm: str, eps: float) -> bool:
    """Whether (norm, radius) is this norm and radius."""
    return threat is not None and threat[0] == norm and same_radius(threat[1], eps)


def measurements(stages: Iterable[ReportStage], *, sweep: bool | None = None) -> list[Measurement]:
    """Every row of every stage, in the pipeline's order.

    Args:
        stages: of the run.
        sweep: True keeps the rows of sweeps only, False those of other evaluations only.
    """
    known = {stage.name: stage for stage in stages}
    return [
        _measurement(row, stage, known)
        for stage in known.values()
        if sweep is None or stage.is_sweep == sweep
        for row in stage.rows
    ]


def _measurement(row: ResultRow, source: ReportStage, known: Mapping[str, ReportStage]) -> Measurement:
    training = known.get(row.stage)
    return Measurement(row, source, training, known.get(training.starts_from) if training else None)


def worst_cases(stages: Iterable[ReportStage]) -> list[WorstCaseRow]:
    """Worst cases over the norms of every stage, in the pipeline's order."""
    return [row for stage in stages for row in stage.worst_cases]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items with equal keys together; groups and members keep their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


_EQUAL_CONDITIONS = {
    "dataset": "the data set",
    "split": "split",
    "attack_library": "the attack's version",
    "precision": "precision",
}
"""Conditions that must be equal for two evaluations to be compared image by image -> words for them."""


def differing_conditions(first: ReportStage, second: ReportStage) -> str:
    """Conditions in which two evaluations differ so that they cannot be compared; empty if there are none."""
    differing = [
        words
        for name, words in _EQUAL_CONDITIONS.items()
        if getattr(first.conditions, name, None) != getattr(second.conditions, name, None)
    ]
    return ", ".join(differing)


def same_images(first: ReportStage, second: ReportStage) -> bool:
    """Whether two evaluations measured the same images, or the smaller one the first images of the larger one.

    An evaluation of n images takes the first n of one fixed order. This is checked, not assumed: the rows in the data
    set and the labels must agree.
    """
    if first.conditions and second.conditions and first.conditions.images_digest == second.conditions.images_digest:
        return True
    if not first.data or first.data != second.data or not first.verdicts or not second.verdicts:
        return False
    groups = [one.verdicts.resolutions for one in (first, second) if one.verdicts]
    if not all(groups):
        return False
    ours, theirs = (found[0].identities for found in groups)
    n = min(len(ours), len(theirs))
    return n > 0 and ours[:n] == theirs[:n]
