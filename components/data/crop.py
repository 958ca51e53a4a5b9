"""Where an image is cropped and whether it is flipped: pure functions of (seed, epoch, sample).

RandomResizedCrop as torchvision and FFCV do it (ten tries, then the largest centered crop of an allowed ratio), with
numbers from `randomness` instead of a generator, so that no worker, thread, batch size or restart changes a crop. Only
operations that IEEE 754 rounds exactly are used (no exp or log at run time), so NumPy and numba agree in every bit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.data.randomness import U64, below, draws, unit
from components.errors import UserError

TRIES = 10
RATIO_STEPS = 4096
"""The log-uniform aspect ratio is taken from a table of this many values."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts out a random part of the image and resizes it to the output (training).

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.

    Raises:
        UserError: not a range of positive numbers, or a share above 1.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= top:
                remedy = "give two numbers, 0 < low <= high" + (" <= 1" if top == 1 else "")
                raise UserError("not a range", where=name, value=(low, high), remedy=remedy)


@dataclass(frozen=True)
class CenterCrop:
    """Resizes the shorter side to floor(resolution / crop_pct), bicubic, then cuts out the centre (evaluation).

    Args:
        crop_pct: 0.875 for ImageNet (256 -> 224); 1.0 for small images, which are resized only.

    Raises:
        UserError: not a number in (0, 1].
    """

    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1:
            raise UserError("out of range", where="crop_pct", value=self.crop_pct, remedy="use a number in (0, 1]")


@functools.lru_cache(maxsize=16)
def ratio_table(ratio: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Returns (RATIO_STEPS,) aspect ratios, evenly spaced in their logarithm."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    steps = [low + (high - low) * (k + 0.5) / RATIO_STEPS for k in range(RATIO_STEPS)]
    return np.array([math.exp(step) for step in steps])


def random_boxes(
    crop: RandomResizedCrop, seed: int, keys: U64, heights: npt.ArrayLike, widths: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Returns boxes (n, 4) of top, left, height, width in pixels, for samples with these keys and sizes.

    Try t uses draws 4t+1 .. 4t+4 of each key; draw 0 decides the flip.
    """
    tall, wide = (np.asarray(side, np.int64).reshape(-1, 1) for side in (heights, widths))
    bits = draws(seed, keys.reshape(-1, 1, 1), np.arange(1, 4 * TRIES + 1, dtype=np.uint64).reshape(1, TRIES, 4))
    area = (tall * wide).astype(np.float64) * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * unit(bits[:, :, 0]))
    ratio = ratio_table(crop.ratio)[below(bits[:, :, 1], RATIO_STEPS)]
    w = np.floor(np.sqrt(area * ratio) + 0.5).astype(np.int64)
    h = np.floor(np.sqrt(area / ratio) + 0.5).astype(np.int64)
    fits = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
    top = below(bits[:, :, 2], np.where(fits, tall - h + 1, 1))
    left = below(bits[:, :, 3], np.where(fits, wide - w + 1, 1))
    boxes = np.stack([top, left, h, w], axis=-1)
    chosen = np.take_along_axis(boxes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    for row in np.flatnonzero(~fits.any(axis=1)):
        chosen[row] = centered_box(int(tall[row, 0]), int(wide[row, 0]), crop.ratio)
    return chosen


def centered_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Returns the largest centered box whose width / height is within `ratio`, for images that no try fits."""
    h, w = height, width
    if width < ratio[0] * height:
        h = min(height, math.floor(width / ratio[0] + 0.5))
    elif width > ratio[1] * height:
        w = min(width, math.floor(height * ratio[1] + 0.5))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_flips(seed: int, keys: U64, probability: float) -> npt.NDArray[np.bool_]:
    """Returns which samples are flipped horizontally, bool (n,)."""
    return unit(draws(seed, keys, 0)) < probability
