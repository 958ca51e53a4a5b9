"""Results with their conditions: rows, worst cases, every image's verdicts, and the gallery.

The gallery shows for some images the clean one, the adversarial one, and their difference made visible. Its pictures
are rounded to 8 bits for display; attack and verification use float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from components.evaluate.attack import attack_module
from components.evaluate.config import EvaluateConfig
from components.evaluate.images import ImageSet
from components.evaluate.outcomes import Outcome, Shown
from components.models.weights import ModelCard
from components.result_rows import (
    Conditions,
    ImageVerdicts,
    PartRow,
    ResolutionVerdicts,
    ResultRow,
    RowDetails,
    RowThreat,
    Verdicts,
    VerdictThreat,
    WorstCaseRow,
)
from components.stage_records import GALLERY_INDEX, GalleryEntry
from components.statistics import INTERVAL_NAME, wilson
from components.threats import ATTACKS

PRECISION = "fp32"
RADII_NOTE = "radii are those of the threat at every resolution; L2 and L1 budgets are not scaled with the pixels"


@dataclass(frozen=True)
class Subject:
    """The model that was measured.

    Attributes:
        kind, stage: kind and name of the training stage.
        model_sha256: of the weights.
        classes: class names in label order.
    """

    kind: str
    stage: str
    card: ModelCard
    model_sha256: str
    dataset: str
    classes: tuple[str, ...]
    run_id: str = ""

    def columns(self, resolution: int, image_set: str) -> dict[str, Any]:
        """The first fields of every row of this model."""
        return {
            "kind": self.kind,
            "stage": self.stage,
            "model": self.card.name,
            "stem": self.card.stem,
            "dataset": self.dataset,
            "resolution": resolution,
            "image_set": image_set,
        }


def result_row(subject: Subject, outcome: Outcome, config: EvaluateConfig, images: ImageSet) -> ResultRow:
    """One result: accuracies as fractions, the interval of the robust accuracy, further conditions in `details`."""
    robust, correct, threat = int(outcome.robust.sum()), int(outcome.correct.sum()), outcome.threat
    return ResultRow(
        **subject.columns(outcome.resolution, images.title),
        norm=threat.norm,
        eps=threat.eps,
        attack=ATTACKS[threat.attack].title,
        n=outcome.n,
        clean_accuracy=correct / outcome.n,
        robust_accuracy=robust / outcome.n,
        interval=wilson(robust, outcome.n),
        stored_side=images.stored_side,
        details=_details(subject, outcome, config, images),
    )


def _details(subject: Subject, outcome: Outcome, config: EvaluateConfig, images: ImageSet) -> RowDetails:
    threat, module = outcome.threat, attack_module(outcome.threat.attack)
    return RowDetails(
        attack_library=module.LIBRARY,
        attack_version=ATTACKS[threat.attack].version,
        targets=module.targets(threat, subject.card.num_classes),
        targets_note=module.targets_note(threat, subject.card.num_classes),
        seed=config.seed,
        batch_size=config.batch_size,
        precision=PRECISION,
        split=config.split,
        images_digest=images.digest,
        interval_method=INTERVAL_NAME,
        clean_interval=wilson(int(outcome.correct.sum()), outcome.n),
        parts=tuple(PartRow.model_validate(part) for part in outcome.parts),
        seconds=outcome.seconds,
        unverified=outcome.unverified,
        narrow_margins=outcome.narrow,
        largest_distance=float(outcome.distance.max()),
        resolution_note=images.resolution_note(outcome.resolution),
        warnings=tuple(outcome.warnings),
    )


def worst_case_rows(subject: Subject, outcomes: Sequence[Outcome], image_set: str) -> list[WorstCaseRow]:
    """Worst case over the norms, image by image, for each resolution that has threats in several norms.

    One radius a norm: the first one given for it, so that models evaluated at further radii too are judged by the same
    threats. Of several attacks at that radius the strongest counts. Where threats have different numbers of images, the
    images common to all are taken (the first ones).

    Args:
        image_set: what the rows call the images.
    """
    rows = []
    for resolution in dict.fromkeys(outcome.resolution for outcome in outcomes):
        chosen = _one_per_norm([outcome for outcome in outcomes if outcome.resolution == resolution])
        if len(chosen) > 1:
            rows.append(_worst_case(subject, resolution, chosen, image_set))
    return rows


def _worst_case(subject: Subject, resolution: int, outcomes: Sequence[Outcome], image_set: str) -> WorstCaseRow:
    n = min(outcome.n for outcome in outcomes)
    robust = int(np.logical_and.reduce([outcome.robust[:n] for outcome in outcomes]).sum())
    correct = np.logical_and.reduce([outcome.correct[:n] for outcome in outcomes])
    threats = [RowThreat(norm=o.threat.norm, eps=o.threat.eps, attack=ATTACKS[o.threat.attack].title) for o in outcomes]
    return WorstCaseRow(
        **subject.columns(resolution, image_set),
        norms=tuple(dict.fromkeys(threat.norm for threat in threats)),
        threats=tuple(threats),
        attack=" / ".join(dict.fromkeys(threat.attack for threat in threats)),
        n=n,
        clean_accuracy=float(correct.mean()),
        robust_accuracy=robust / n,
        interval=wilson(robust, n),
    )


def _one_per_norm(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """For each norm the outcome at the radius that comes first, by the strongest attack."""
    chosen: dict[str, Outcome] = {}
    for outcome in outcomes:
        best = chosen.setdefault(outcome.threat.norm, outcome)
        stronger = ATTACKS[outcome.threat.attack].strength > ATTACKS[best.threat.attack].strength
        if outcome.threat.eps == best.threat.eps and stronger:
            chosen[outcome.threat.norm] = outcome
    return list(chosen.values())


def conditions(
    subject: Subject, config: EvaluateConfig, images: ImageSet, resolutions: Sequence[int], device: str
) -> Conditions:
    """What holds for every result of this evaluation; results under other conditions must not be compared."""
    libraries = dict.fromkeys(attack_module(threat.attack).LIBRARY for threat in config.threats)
    return Conditions(
        attack_library=" and ".join(libraries),
        torch=torch.__version__,
        device=device,
        precision=PRECISION,
        seed=config.seed,
        batch_size=config.batch_size,
        split=config.split,
        n=images.n,
        images=f"{images.n} of the split {config.split}: {images.title}",
        stored_side=images.stored_side,
        images_digest=images.digest,
        resolutions=tuple(resolutions),
        crop_ratio=subject.card.crop_ratio,
        radii=RADII_NOTE,
        interval=INTERVAL_NAME,
        dataset=subject.dataset,
        classes=len(subject.classes),
        model_run=subject.run_id,
        model_sha256=subject.model_sha256,
    )


def verdicts(images: ImageSet, outcomes: Sequence[Outcome]) -> Verdicts:
    """Every image's verdicts: its row in the encoded split, label, clean class, and one verdict for each threat."""
    by_resolution: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        by_resolution.setdefault(outcome.resolution, []).append(outcome)
    return Verdicts(
        resolutions=tuple(
            ResolutionVerdicts(
                resolution=resolution,
                threats=tuple(_threat(outcome) for outcome in some),
                images=tuple(_image(images, position, some) for position in range(max(o.n for o in some))),
            )
            for resolution, some in by_resolution.items()
        )
    )


def _threat(outcome: Outcome) -> VerdictThreat:
    threat = outcome.threat
    return VerdictThreat(norm=threat.norm, eps=threat.eps, attack=threat.attack, title=threat.title, n=outcome.n)


def _image(images: ImageSet, position: int, outcomes: Sequence[Outcome]) -> ImageVerdicts:
    seen = [outcome if position < outcome.n else None for outcome in outcomes]
    first = next(outcome for outcome in seen if outcome is not None)
    return ImageVerdicts(
        index=int(images.indices[position]),
        label=int(images.labels[position]),
        clean_prediction=int(first.clean_prediction[position]),
        verdicts=tuple(None if o is None else str(o.verdict[position]) for o in seen),
        predictions=tuple(None if o is None else int(o.prediction[position]) for o in seen),
        distances=tuple(None if o is None else round(float(o.distance[position]), 7) for o in seen),
    )


INDEX = Path(GALLERY_INDEX).name


def choose(outcomes: Sequence[Outcome], count: int) -> list[tuple[Outcome, Shown]]:
    """Up to `count` kept images, the threats taking turns, each with its first ones."""
    kept = [[(outcome, shown) for shown in outcome.shown] for outcome in outcomes]
    turns = [some[k] for k in range(max(map(len, kept), default=0)) for some in kept if k < len(some)]
    return turns[:count]


def write(
    folder: Path, outcomes: Sequence[Outcome], images: ImageSet, classes: Sequence[str], count: int
) -> list[GalleryEntry]:
    """Writes PNG files and `gallery.json`, a list with one entry for each image; returns that list."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        _entry(folder, number, outcome, shown, images, classes)
        for number, (outcome, shown) in enumerate(choose(outcomes, count))
    ]
    document = [entry.model_dump(mode="json") for entry in entries]
    (folder / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return entries


def difference(clean: npt.NDArray[np.float32], adversarial: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], float]:
    """The perturbation around mid-grey, stretched so that its largest entry reaches 0 or 1; and the factor."""
    delta = adversarial - clean
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + delta * factor, factor


def _entry(
    folder: Path, number: int, outcome: Outcome, shown: Shown, images: ImageSet, classes: Sequence[str]
) -> GalleryEntry:
    clean = images.pixels[outcome.resolution][shown.position].astype(np.float32) / 255
    adversarial = np.moveaxis(shown.adversarial, 0, -1)
    stretched, factor = difference(clean, adversarial)
    files = {}
    for name, picture in (("clean", clean), ("adversarial", adversarial), ("difference", stretched)):
        files[name] = f"{number:03d}-{name}.png"
        Image.fromarray(np.rint(picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / files[name])
    return GalleryEntry(
        **files,
        index=int(images.indices[shown.position]),
        label=_named(classes, int(images.labels[shown.position])),
        clean_prediction=_named(classes, shown.clean_prediction),
        adversarial_prediction=_named(classes, shown.prediction),
        norm=outcome.threat.norm,
        eps=outcome.threat.eps,
        attack=ATTACKS[outcome.threat.attack].title,
        broken_by=str(outcome.verdict[shown.position]),
        distance=shown.distance,
        amplification=round(factor, 3),
        resolution=outcome.resolution,
    )


def _named(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)
