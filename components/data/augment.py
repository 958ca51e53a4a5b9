"""The paper's heavy augmentation: RandAugment and random erasing, pure functions of (seed, epoch, sample).

It follows crop and flip, on the loader's threads. Mixup and cutmix mix whole batches and belong to the training step.

RandAugment is `rand-m9-mstd0.5-inc1` as timm 1.0.31 defines it. Two operations of fifteen are drawn with replacement;
each is applied with probability 0.5 at a magnitude drawn from N(9, 0.5), cut to [0, 10]. "Increasing" means that every
operation changes the image more at a larger magnitude. The operations are written here because timm's draw their random
numbers from Python's global generator, so that an image would depend on how many were augmented before it; a test
compares every operation with timm's. Source: Cubuk et al., "RandAugment" (2020); ranges and resampling as in timm's
`auto_augment.py`.

Random erasing is timm 1.0.31's mode `pixel`: a rectangle of noise. Source: Zhong et al., "Random Erasing Data
Augmentation" (2017), with 2 % to a third of the area and aspect ratios from 0.3 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from components.data.randomness import U64, below, draws, unit

_PURPOSE = 0x6175676D656E74
"""Makes these random numbers differ from those of the sampler and the crops under the same seed."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILLS: dict[str, Colour] = {"mean": (124, 116, 104), "black": (0, 0, 0)}
"""Colour of the areas that rotation, shearing and translation bring in: ImageNet's mean colour, or black."""

ERASED_AREA = (0.02, 1 / 3)
"""Smallest and largest share of the image's area."""

ERASED_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width."""

TRIES = 10

ERASING_DRAWS = 2 + 4 * TRIES
"""Number of random numbers that erasing uses per image: whether to erase, the noise's seed, and four per try."""


class Augmentation(Protocol):
    """Changes images after crop and flip."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Type of the images it makes: uint8, or float32 if they can leave [0, 1]."""
        ...

    def fill_batch(self, out: npt.NDArray[Any], images: npt.NDArray[np.uint8], keys: U64) -> None:
        """Writes the changed images (B, H, W, 3) of samples with these keys to `out`."""
        ...


@dataclass(frozen=True)
class HeavyAugmentation:
    """RandAugment m9-mstd0.5-inc1, then random erasing of single pixels.

    Args:
        seed: of all its random numbers.
        fill: `mean` is ImageNet's mean colour, timm's default; `black` is what the paper's released code used, because
            it passed a mean of 0.
        noise: `clipped` erases with noise of ImageNet's mean and deviation, cut to [0, 1], as timm does after its
            normalisation. `normal` erases with N(0, 1) in units of the image, far outside [0, 1], as the released code
            did; images are float32 then.
        erase_probability: share of images with an erased rectangle.
    """

    seed: int
    fill: Literal["mean", "black"] = "mean"
    noise: Literal["clipped", "normal"] = "clipped"
    erase_probability: float = 0.25

    @classmethod
    def of(cls, seed: int, *, match_released_code: bool) -> HeavyAugmentation:
        """Returns timm's augmentation, or with `match_released_code` that of the paper's released code."""
        return cls(seed, fill="black", noise="normal") if match_released_code else cls(seed)

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint8 (0 to 255), or float32 (0 to 1, and beyond in erased rectangles)."""
        return np.dtype(np.float32 if self.noise == "normal" else np.uint8)

    def fill_batch(self, out: npt.NDArray[Any], images: npt.NDArray[np.uint8], keys: U64) -> None:
        """Writes the changed images (B, H, W, 3) of samples with these keys to `out`."""
        numbers = np.arange(DRAWS + ERASING_DRAWS, dtype=np.uint64)
        bits = draws(self.seed ^ _PURPOSE, keys[:, None], numbers[None, :])
        steps = draw_steps(bits[:, :DRAWS])
        height, width = images.shape[1:3]
        holes = draw_rectangles(bits[:, DRAWS:], self.erase_probability, height, width)
        for row, image in enumerate(images):
            changed = apply_steps(image, steps[row], FILLS[self.fill])
            out[row] = changed if self.noise == "clipped" else changed * np.float32(1 / 255)
            hole = holes[row]
            if hole:
                part = out[row, hole.top : hole.top + hole.height, hole.left : hole.left + hole.width]
                part[:] = self._noise(hole)

    def _noise(self, hole: Rectangle) -> npt.NDArray[Any]:
        if self.noise == "normal":
            return hole.noise()
        colour = np.array(IMAGENET_MEAN, np.float32) + np.array(IMAGENET_STD, np.float32) * hole.noise()
        return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)


class Rectangle(NamedTuple):
    """A part of an image in pixels, and the seed of its noise."""

    top: int
    left: int
    height: int
    width: int
    seed: int

    def noise(self) -> npt.NDArray[np.float32]:
        """Draws N(0, 1) for every value, (height, width, 3)."""
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        return rng.standard_normal((self.height, self.width, 3), np.float32)


def draw_rectangles(bits: U64, probability: float, height: int, width: int) -> list[Rectangle | None]:
    """Chooses the rectangle of each image, or None, from (n, ERASING_DRAWS) random bits; sizes in pixels."""
    tries = bits[:, 2:].reshape(len(bits), TRIES, 4)
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * unit(tries[:, :, 0]))
    low, high = (math.log(ratio) for ratio in ERASED_ASPECT)
    aspect = np.exp(low + (high - low) * unit(tries[:, :, 1]))
    h = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    w = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (h < height) & (w < width)
    top = below(tries[:, :, 2], np.where(fits, height - h + 1, 1))
    left = below(tries[:, :, 3], np.where(fits, width - w + 1, 1))
    erased = (unit(bits[:, 0]) < probability) & fits.any(axis=1)
    first = fits.argmax(axis=1)
    return [
        Rectangle(*(int(side[row, first[row]]) for side in (top, left, h, w)), seed=int(bits[row, 1]))
        if erased[row]
        else None
        for row in range(len(bits))
    ]


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
