"""One figure that is judged, with everything that has to be equal before two of them may be compared.

It is stored with the registered version as a few short tags, so that the next challenger can be compared with the
champion, image by image, without the champion's run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from components.errors import UserError
from components.promote.config import PromoteConfig

FIGURE_TAG, VERDICTS_TAG = "judged_figure", "judged_verdicts"
STRONGEST = "AutoAttack"
_TAG_LIMIT = 4900
"""MLflow cuts tag values at 5,000 characters."""


@dataclass(frozen=True)
class Judged:
    """One robust accuracy under its conditions; accuracies are fractions.

    Attributes:
        interval: (low, high), 95 %, of the robust accuracy.
        robust: per image whether it stayed right; empty where not recorded (more than about 19,000 images).
        seed, batch_size: of the attack.
    """

    norm: str
    eps: float
    attack: str
    library: str
    resolution: int
    n: int
    images_digest: str
    precision: str
    seed: int
    batch_size: int
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    robust: tuple[bool, ...] = ()

    @property
    def conditions(self) -> dict[str, Any]:
        """What has to be equal for a comparison."""
        names = (
            "norm",
            "eps",
            "attack",
            "library",
            "resolution",
            "n",
            "images_digest",
            "precision",
            "seed",
            "batch_size",
        )
        return {name: getattr(self, name) for name in names}

    def to_tags(self) -> dict[str, str]:
        """Tags of a registered version."""
        figures = {"clean_accuracy": self.clean_accuracy, "robust_accuracy": self.robust_accuracy}
        document = {**self.conditions, **figures, "interval": list(self.interval)}
        packed = _pack(self.robust)
        tags = {FIGURE_TAG: json.dumps(document, sort_keys=True)}
        return {**tags, VERDICTS_TAG: packed} if packed and len(packed) <= _TAG_LIMIT else tags

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The figure of a registered version; None where it has none that can be read."""
        try:
            document = json.loads(tags[FIGURE_TAG])
            document["interval"] = tuple(document["interval"])
            found = cls(**document)
            return cls(**document, robust=_unpack(tags.get(VERDICTS_TAG, ""), found.n))
        except (KeyError, TypeError, ValueError):
            return None


def judged_figure(results: Mapping[str, Any], verdicts: Mapping[str, Any], config: PromoteConfig) -> Judged:
    """The figure that the configuration names, out of an evaluation's `results.json` and `verdicts.json`.

    Raises:
        UserError: the evaluation has no such figure.
    """
    rows: Sequence[Mapping[str, Any]] = results["rows"]
    fitting = [row for row in rows if _fits(row, config)]
    if not fitting:
        had = ", ".join(f"{row['norm']} {row['eps']:g} by {row['attack']}" for row in rows)
        raise UserError(
            f"the evaluation {config.evaluation!r} has no figure to judge",
            where="promote",
            value={"norm": config.norm, "eps": config.eps},
            remedy=f"name one it has ({had}), or add the threat to the evaluation",
        )
    # The strongest attack that measured this threat; weaker ones can only say more.
    row = next((row for row in fitting if row["attack"] == STRONGEST), fitting[0])
    details = row["details"]
    return Judged(
        norm=row["norm"],
        eps=float(row["eps"]),
        attack=row["attack"],
        library=details["attack_library"],
        resolution=int(row["resolution"]),
        n=int(row["n"]),
        images_digest=details["images_digest"],
        precision=details["precision"],
        seed=int(details["seed"]),
        batch_size=int(details["batch_size"]),
        clean_accuracy=float(row["clean_accuracy"]),
        robust_accuracy=float(row["robust_accuracy"]),
        interval=(float(row["interval"][0]), float(row["interval"][1])),
        robust=_robust(verdicts, row),
    )


def _fits(row: Mapping[str, Any], config: PromoteConfig) -> bool:
    same_norm = config.norm is None or row["norm"] == config.norm
    same_radius = config.eps is None or abs(row["eps"] - config.eps) <= 1e-9 * config.eps
    return same_norm and same_radius


def _robust(verdicts: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[bool, ...]:
    for group in verdicts.get("resolutions", []):
        for place, threat in enumerate(group["threats"]):
            same = threat["norm"] == row["norm"] and threat["eps"] == row["eps"]
            if group["resolution"] == row["resolution"] and same and threat["attack"] == row["attack"].lower():
                return tuple(image["verdicts"][place] == "robust" for image in group["images"][: row["n"]])
    return ()


def _pack(flags: Sequence[bool]) -> str:
    value = int("1" + "".join("1" if flag else "0" for flag in flags), 2) if flags else 0
    return f"{value:x}" if flags else ""


def _unpack(text: str, n: int) -> tuple[bool, ...]:
    # The leading 1 keeps leading zeros, and tells the length.
    bits = f"{int(text, 16):b}"[1:] if text else ""
    return tuple(bit == "1" for bit in bits) if len(bits) == n else ()
