"""Random erasing, mode `pixel`, as in timm 1.0.31: a rectangle of noise, drawn as a function of the sample.

Source: Zhong et al., "Random Erasing Data Augmentation" (2017): 2 % to a third of the area, aspect ratio 0.3 to 3.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.data.counter import U64, below, unit

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
TRIES = 10

DRAWS = 2 + 4 * TRIES
"""Random numbers that one image uses: whether, the noise's seed, and four in each try."""


class Rectangle(NamedTuple):
    """A part of an image in pixels, and the seed of its noise."""

    top: int
    left: int
    height: int
    width: int
    seed: int

    def noise(self) -> npt.NDArray[np.float32]:
        """N(0, 1) for every value, (height, width, 3)."""
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        return rng.standard_normal((self.height, self.width, 3), np.float32)


def drawn_rectangles(bits: U64, probability: float, height: int, width: int) -> list[Rectangle | None]:
    """The rectangle of each image, or None, from (n, DRAWS) random numbers."""
    tries = bits[:, 2:].reshape(len(bits), TRIES, 4)
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * unit(tries[:, :, 0]))
    low, high = (math.log(ratio) for ratio in ASPECT)
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
