"""Units put together again: one outcome for each resolution and threat, in the order of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluate.autoattack import ROBUST, WRONG
from components.evaluate.config import Threat
from components.evaluate.unit_file import UnitResult
from components.evaluate.workload import Workload


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
        """Images."""
        return len(self.verdict)

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """(n,) right as it is and under attack."""
        return self.verdict == ROBUST

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(n,) right as it is."""
        return self.verdict != WRONG


def gather(workload: Workload, results: Sequence[UnitResult]) -> list[Outcome]:
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
