"""The paper's heavy augmentation: RandAugment and random erasing, pure functions of (seed, epoch, sample).

It follows crop and flip, on the loader's threads. Mixup and cutmix mix whole batches and belong to the training step.

Random erasing is timm 1.0.31's mode `pixel`: a rectangle of noise. Source: Zhong et al., "Random Erasing Data
Augmentation" (2017), with 2 % to a third of the area and aspect ratios from 0.3 to 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from components.data import randaugment
from components.data.randomness import U64, below, draws, unit

_PURPOSE = 0x6175676D656E74
"""Makes these random numbers differ from those of the sampler and the crops under the same seed."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILLS: dict[str, randaugment.Colour] = {"mean": (124, 116, 104), "black": (0, 0, 0)}
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
        numbers = np.arange(randaugment.DRAWS + ERASING_DRAWS, dtype=np.uint64)
        bits = draws(self.seed ^ _PURPOSE, keys[:, None], numbers[None, :])
        steps = randaugment.draw_steps(bits[:, : randaugment.DRAWS])
        height, width = images.shape[1:3]
        holes = draw_rectangles(bits[:, randaugment.DRAWS :], self.erase_probability, height, width)
        for row, image in enumerate(images):
            changed = randaugment.apply_steps(image, steps[row], FILLS[self.fill])
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
