"""Joins units: one outcome for each resolution and threat, in the order of the images, and those that it implies.

AutoAttack begins with APGD-CE and APGD-T, from the same seeds and on the same blocks as the shorter attack
APGD-CE+APGD-T. An image that only FAB-T or Square broke is one that the shorter attack would have left robust. So the
verdicts of the shorter attack are read off a run of the longer one, without attacking twice (`Attack.implies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluate.config import Threat
from components.evaluate.work_units import UnitResult, Workload
from components.result_rows import ROBUST, WRONG
from components.threats import ATTACKS, Attack


@dataclass(frozen=True)
class Shown:
    """One adversarial image that was kept.

    Attributes:
        position: of the image in the chosen set.
        adversarial: (C, R, R) float32 in [0, 1].
    """

    position: int
    clean_prediction: int
    prediction: int
    distance: float
    adversarial: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """One threat at one resolution on the first n images.

    Attributes:
        verdict: (n,) words: `robust`, `wrong`, or the part of the attack that broke the image.
        distance: (n,) norms of the perturbations of broken images, else 0.
        parts: for each part of the attack: images given, images broken, seconds, summed over the blocks.
        shown: adversarial images kept.
    """

    threat: Threat
    resolution: int
    clean_prediction: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    verdict: npt.NDArray[np.str_]
    distance: npt.NDArray[np.float64]
    parts: list[dict[str, Any]]
    seconds: float
    unverified: int
    narrow: int
    warnings: list[str]
    shown: list[Shown]

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.verdict)

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """(n,) classified correctly under the attack (and without it)."""
        return self.verdict == ROBUST

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) classified correctly without an attack."""
        return self.verdict != WRONG


def join_units(workload: Workload, results: Sequence[UnitResult]) -> list[Outcome]:
    """Outcomes ordered by resolution, then threat, as the units are."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, unit in enumerate(workload.units):
        groups.setdefault((unit.resolution, unit.threat), []).append(number)
    return [
        _joined(workload, workload.threats[threat], resolution, numbers, results)
        for (resolution, threat), numbers in groups.items()
    ]


def _joined(
    workload: Workload, threat: Threat, resolution: int, numbers: list[int], results: Sequence[UnitResult]
) -> Outcome:
    parts = [results[number] for number in numbers]
    starts = [workload.units[number].start for number in numbers]
    assert starts == sorted(starts), "blocks out of order"
    facts = [part.facts for part in parts]
    return Outcome(
        threat=threat,
        resolution=resolution,
        clean_prediction=np.concatenate([part.clean_prediction for part in parts]),
        prediction=np.concatenate([part.prediction for part in parts]),
        verdict=np.array([word for fact in facts for word in fact["verdict"]]),
        distance=np.concatenate([part.distance for part in parts]),
        parts=_summed([fact["parts"] for fact in facts]),
        seconds=round(sum(fact["seconds"] for fact in facts), 3),
        unverified=sum(fact["unverified"] for fact in facts),
        narrow=sum(fact["narrow"] for fact in facts),
        warnings=list(dict.fromkeys(warning for fact in facts for warning in fact["warnings"])),
        shown=[shown for start, part in zip(starts, parts) for shown in _shown(start, part)],
    )


def _summed(blocks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "attack": same[0]["attack"],
            "images": sum(part["images"] for part in same),
            "broken": sum(part["broken"] for part in same),
            "seconds": round(sum(part["seconds"] for part in same), 3),
        }
        for same in zip(*blocks)
    ]


def _shown(start: int, part: UnitResult) -> list[Shown]:
    return [
        Shown(
            position=start + row,
            clean_prediction=int(part.clean_prediction[row]),
            prediction=int(part.prediction[row]),
            distance=float(part.distance[row]),
            adversarial=image,
        )
        for row, image in zip(part.shown.tolist(), part.adversarial)
    ]


def implied_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of shorter attacks that can be read off, without those that were measured themselves."""
    measured = {_key(outcome) for outcome in outcomes}
    implied = [
        read_off(outcome, ATTACKS[key]) for outcome in outcomes for key in ATTACKS[outcome.threat.attack].implies
    ]
    return [outcome for outcome in implied if _key(outcome) not in measured]


def read_off(outcome: Outcome, shorter: Attack) -> Outcome:
    """The outcome of an attack that consists of the first parts of the one that was run.

    Predictions and distances of images that the shorter attack leaves robust are those of the clean image.
    """
    parts = ATTACKS[outcome.threat.attack].parts
    assert parts[: len(shorter.parts)] == shorter.parts, (
        f"{shorter.key} is not the beginning of {outcome.threat.attack}"
    )
    later = [part.title for part in parts[len(shorter.parts) :]]
    spared = np.isin(outcome.verdict, later)
    kept = [part for part in outcome.parts if part["attack"] not in later]
    return replace(
        outcome,
        threat=outcome.threat.model_copy(update={"attack": shorter.key}),
        verdict=np.where(spared, ROBUST, outcome.verdict),
        prediction=np.where(spared, outcome.clean_prediction, outcome.prediction),
        distance=np.where(spared, 0.0, outcome.distance),
        parts=kept,
        seconds=sum(float(part["seconds"]) for part in kept),
        shown=[],
    )


def _key(outcome: Outcome) -> tuple[object, ...]:
    threat = outcome.threat
    return outcome.resolution, threat.norm, threat.eps, threat.attack
