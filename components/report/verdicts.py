"""What happened to every image behind a figure, so that two figures can be compared on the images they share.

An evaluation of n images takes the first n of one fixed order, so of two evaluations on the same data the smaller one
holds the first images of the larger one. Nothing is taken on trust: the images' rows and labels have to agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.report.data import ReportStage
from components.report.figures import number

_WHOLE, _SHORT = "autoattack", "apgd-ce+apgd-t"
_ONLY_WHOLE = frozenset({"FAB-T", "Square"})
"""Parts of AutoAttack that the short form lacks; an image that only they broke is one the short form leaves robust."""

_ALIKE = ("dataset", "split", "attack_library", "precision")
"""Conditions of an evaluation that have to be equal before two of them make pairs."""

_WORDS = {"dataset": "the data set", "attack_library": "the attack's version"}


@dataclass(frozen=True)
class Verdicts:
    """The images behind one figure, in the order of the evaluation.

    Attributes:
        images: (row in the data set, label) of every image.
        robust: whether it stayed right under the attack.
        stage: the evaluation they are from.
    """

    images: Sequence[tuple[int, int]]
    robust: Sequence[bool]
    stage: ReportStage


def verdicts_of(row: Mapping[str, Any], stage: ReportStage) -> Verdicts | None:
    """The verdicts behind a row of `results.json`; None where the evaluation left none for it."""
    attack, norm, eps = str(row.get("attack")).lower(), row.get("norm"), number(row.get("eps"))
    groups = [group for group in _groups(stage) if group.get("resolution") == row.get("resolution")]
    if eps is None or not groups:
        return None
    group = groups[0]
    for name, spared in ((attack, frozenset()), (_WHOLE, _ONLY_WHOLE)):
        for place, threat in enumerate(group["threats"]):
            same = threat["norm"] == norm and abs(float(threat["eps"]) - eps) < 1e-9 and threat["attack"] == name
            if same and (name == attack or attack == _SHORT):
                return _read(group["images"], place, spared, stage)
    return None


def images_of(group: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(row in the data set, label) of every image of one resolution's verdicts."""
    return [(image["index"], image["label"]) for image in group["images"]]


def unlike(first: ReportStage, second: ReportStage) -> str:
    """Conditions in which two evaluations differ so that nothing compares them; an empty string where none does."""
    differing = [key for key in _ALIKE if first.conditions.get(key) != second.conditions.get(key)]
    return ", ".join(_WORDS.get(key, key) for key in differing)


def same_images(first: ReportStage, second: ReportStage) -> bool:
    """Whether the images are the same, or those of the smaller evaluation the first ones of the larger."""
    digests = {stage.conditions.get("images_digest") for stage in (first, second)}
    if len(digests) == 1 and None not in digests:
        return True
    if not first.data or first.data != second.data:
        return False
    groups = [_groups(stage) for stage in (first, second)]
    if not all(groups):
        return False
    ours, theirs = (images_of(found[0]) for found in groups)
    n = min(len(ours), len(theirs))
    return n > 0 and ours[:n] == theirs[:n]


def _groups(stage: ReportStage) -> list[Mapping[str, Any]]:
    return list(stage.verdicts.get("resolutions") or [])


def _read(images: Sequence[Mapping[str, Any]], place: int, spared: frozenset[str], stage: ReportStage) -> Verdicts:
    # A threat with an n of its own took the first images; the others have no verdict for it.
    seen = [image for image in images if image["verdicts"][place] is not None]
    robust = [image["verdicts"][place] in {"robust", *spared} for image in seen]
    return Verdicts([(image["index"], image["label"]) for image in seen], robust, stage)
