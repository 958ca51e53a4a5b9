"""Chooses the images to attack and decodes them.

Without a list (`image_list`), the choice is a seeded permutation of the split, cut off after n: it does not depend on
the model, the recipe's seed or the resolution, so that results of different models are measured on the same images, and
the first 100 of 1,000 are the 100.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from components.data.beton_reader import BetonFile
from components.data.crop import CenterCrop
from components.data.loader import open_loader
from components.data.manifest import DataManifest

if TYPE_CHECKING:
    from components.store.objects import ObjectStore

_BATCH = 256


@dataclass(frozen=True)
class ImageSet:
    """The chosen images.

    Attributes:
        indices: (n,) int64, rows of the encoded split, in the order of the choice.
        labels: (n,) int64.
        pixels: resolution -> (n, R, R, 3) uint8.
        digest: sha256 over the split's file and the indices: equal digests, equal images.
        jpeg_decoder: the decoder of the pixels (`Loader.jpeg_decoder`).
        title: what rows of results call the set, e.g. `RobustBench`.
        short_sides: (n,) int64, shorter side of each image as it is stored, in px.
        crop_ratio: of the resolution and the side that images are resized to before their centre is cut out.
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pixels: dict[int, npt.NDArray[np.uint8]]
    digest: str
    jpeg_decoder: str
    title: str
    short_sides: npt.NDArray[np.int64]
    crop_ratio: float

    @property
    def stored_side(self) -> int:
        """The median of the stored shorter sides, in px."""
        return int(np.median(self.short_sides))

    def resolution_note(self, resolution: int) -> str:
        """A sentence if more than half of the images are enlarged for this resolution; otherwise empty."""
        needed = math.floor(resolution / self.crop_ratio)
        enlarged = int((self.short_sides < needed).sum())
        if 2 * enlarged <= self.n:
            return ""
        return (
            f"{enlarged} of the {self.n} images are enlarged for {resolution} px: their shorter side would have to be "
            f"{needed} px, and is stored with {self.stored_side} px (median)"
        )

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def data_digest(self) -> str:
        """sha256 over labels and pixels at every resolution, as they are attacked."""
        digest = hashlib.sha256(self.labels.tobytes())
        for resolution in sorted(self.pixels):
            digest.update(str(resolution).encode() + self.pixels[resolution].tobytes())
        return digest.hexdigest()


def choose(total: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    """(min(n, total),) rows out of 0..total-1, without repetition; a prefix of the choice for a larger n."""
    return np.random.default_rng([seed, 0x1DA6E5]).permutation(total)[:n].astype(np.int64)


def image_set_digest(split_sha256: str, indices: npt.NDArray[np.int64]) -> str:
    """sha256 over a split's digest and rows of it."""
    return hashlib.sha256(split_sha256.encode() + indices.astype("<i8").tobytes()).hexdigest()


def load(
    manifest: DataManifest,
    split: str,
    objects: ObjectStore,
    *,
    indices: npt.NDArray[np.int64],
    title: str,
    resolutions: tuple[int, ...],
    crop_ratio: float,
) -> ImageSet:
    """Decodes the chosen images at every resolution.

    Args:
        indices: rows of the split.
        title: what rows of results call the set.
        crop_ratio: the shorter side is resized to floor(R / crop_ratio), bicubic, then the middle R x R is cut out.

    Raises:
        UserError: no such split, or a damaged file.
    """
    described = manifest.split(split)
    pixels: dict[int, npt.NDArray[np.uint8]] = {}
    labels, jpeg_decoder = np.empty(0, np.int64), "none"
    for resolution in resolutions:
        pixels[resolution], labels, jpeg_decoder = _read(manifest, split, objects, indices, resolution, crop_ratio)
    stored = BetonFile(objects.get(described.object_ref))
    return ImageSet(
        indices=indices,
        labels=labels,
        pixels=pixels,
        digest=image_set_digest(described.sha256, indices),
        jpeg_decoder=jpeg_decoder,
        title=title,
        short_sides=np.minimum(stored.heights, stored.widths)[indices],
        crop_ratio=crop_ratio,
    )


def _read(
    manifest: DataManifest,
    split: str,
    objects: ObjectStore,
    indices: npt.NDArray[np.int64],
    resolution: int,
    crop_ratio: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], str]:
    loader = open_loader(
        manifest,
        split,
        objects,
        engine="native",
        batch_size=min(_BATCH, len(indices)),
        resolution=resolution,
        seed=0,
        train=False,
        num_threads=2,
        indices=indices,
        order="sequential",
        crop=CenterCrop(crop_ratio),
        hflip=0.0,
        drop_last=False,
    )
    images, labels, rows = [], [], []
    try:
        with loader.epoch(0) as epoch:
            for batch in epoch:
                images.append(batch.images.copy())
                labels.append(batch.labels.copy())
                rows.append(batch.indices.copy())
    finally:
        loader.close()
    found = np.concatenate(rows)
    # The loader may sort the rows; the order of the choice is what makes a prefix a prefix.
    place = {int(row): position for position, row in enumerate(found)}
    order = np.array([place[int(row)] for row in indices])
    return np.concatenate(images)[order], np.concatenate(labels)[order].astype(np.int64), loader.jpeg_decoder
