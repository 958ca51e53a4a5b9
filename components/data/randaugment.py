"""RandAugment `rand-m9-mstd0.5-inc1` as timm 1.0.31 defines it, with random numbers that are functions of the sample.

Two operations of fifteen are drawn with replacement; each is applied with probability 0.5 at a magnitude drawn from
N(9, 0.5), cut to [0, 10]. "Increasing" means that every operation changes the image more at a larger magnitude. The
operations are written here because timm's draw their random numbers from Python's global generator, so that an image
would depend on how many were augmented before it; a test compares every operation with timm's.
Source: Cubuk et al., "RandAugment" (2020); ranges and resampling as in timm's `auto_augment.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from components.data.randomness import U64, below, unit

LAYERS = 2
PROBABILITY = 0.5
MAGNITUDE = 9.0
MAGNITUDE_STD = 0.5
LARGEST_MAGNITUDE = 10.0

DRAWS = 5 * LAYERS
"""Number of random numbers that one image uses."""

Colour = tuple[int, int, int]


class Step(NamedTuple):
    """One operation on one image: its name, its magnitude in [0, 10], and its direction (1 or -1)."""

    name: str
    magnitude: float
    sign: int


def _affine(image: Image.Image, fill: Colour, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    method, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, method, matrix, resample=resample, fillcolor=fill)


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the upper bits; none at magnitude 10, which Pillow 13 (and so timm) refuses and earlier versions drew."""
    return image.point([value & ~((1 << (8 - bits)) - 1) for value in range(256)] * 3)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[..., Image.Image]:
    """Returns an operation whose factor moves away from 1 (no change) to 0.1 or 1.9, by the sign."""

    def apply(image: Image.Image, level: float, sign: int, fill: Colour) -> Image.Image:
        return kind(image).enhance(max(0.1, 1.0 + sign * level * 0.9))

    return apply


OPERATIONS: dict[str, Callable[[Image.Image, float, int, Colour], Image.Image]] = {
    "AutoContrast": lambda image, level, sign, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign, fill: ImageOps.equalize(image),
    "Invert": lambda image, level, sign, fill: ImageOps.invert(image),
    "Rotate": lambda image, level, sign, fill: image.rotate(
        sign * level * 30.0, resample=Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "PosterizeIncreasing": lambda image, level, sign, fill: _posterize(image, 4 - int(level * 4)),
    "SolarizeIncreasing": lambda image, level, sign, fill: ImageOps.solarize(image, 256 - min(256, int(level * 256))),
    "SolarizeAdd": lambda image, level, sign, fill: _solarize_add(image, min(128, int(level * 110))),
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, level, sign, fill: _affine(image, fill, (1, sign * level * 0.3, 0, 0, 1, 0)),
    "ShearY": lambda image, level, sign, fill: _affine(image, fill, (1, 0, 0, sign * level * 0.3, 1, 0)),
    "TranslateXRel": lambda image, level, sign, fill: _affine(
        image, fill, (1, 0, sign * level * 0.45 * image.width, 0, 1, 0)
    ),
    "TranslateYRel": lambda image, level, sign, fill: _affine(
        image, fill, (1, 0, 0, 0, 1, sign * level * 0.45 * image.height)
    ),
}
"""Name -> operation(image, level in [0, 1], sign, fill colour), in timm's order."""

_NAMES = list(OPERATIONS)


def draw_steps(bits: U64) -> list[list[Step]]:
    """Chooses the operations of each image from (n, DRAWS) random bits."""
    layers = bits.reshape(len(bits), LAYERS, 5)
    chosen, applied = below(layers[:, :, 0], len(_NAMES)), unit(layers[:, :, 1]) < PROBABILITY
    magnitude = np.clip(MAGNITUDE + MAGNITUDE_STD * _normal(layers[:, :, 2], layers[:, :, 3]), 0, LARGEST_MAGNITUDE)
    sign = np.where(unit(layers[:, :, 4]) < 0.5, 1, -1)
    return [
        [
            Step(_NAMES[chosen[row, layer]], float(magnitude[row, layer]), int(sign[row, layer]))
            for layer in np.flatnonzero(applied[row])
        ]
        for row in range(len(bits))
    ]


def apply_steps(pixels: npt.NDArray[np.uint8], steps: list[Step], fill: Colour) -> npt.NDArray[np.uint8]:
    """Applies operations to an image, uint8 (height, width, 3); areas from outside it get the colour `fill`."""
    if not steps:
        return pixels
    image = Image.fromarray(pixels)
    for step in steps:
        image = OPERATIONS[step.name](image, step.magnitude / LARGEST_MAGNITUDE, step.sign, fill)
    return np.asarray(image)


def _normal(first: U64, second: U64) -> npt.NDArray[np.float64]:
    """Turns two uniform numbers into a normal one, by Box and Muller."""
    radius = np.sqrt(-2.0 * np.log(1.0 - unit(first)))
    return radius * np.cos(2.0 * np.pi * unit(second))
