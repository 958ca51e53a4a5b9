"""The gallery: for some images the clean one, the adversarial one, and their difference made visible.

The pictures are rounded to 8 bits for display; attack and verification use float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.evaluate.images import ImageSet
from components.evaluate.outcomes import Outcome, Shown
from components.stage_records import GALLERY_INDEX, GalleryEntry
from components.threats import ATTACKS

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
