"""The crop and flip of `crop` and `counter` once more, compiled by numba for FFCV's decoder.

Compiled without fastmath, so that every operation is rounded as IEEE 754 says and the boxes equal NumPy's in every
bit. All 64-bit constants are spelled out: numba would turn a mixture of signed and unsigned into floats.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from components.data.counter import EPOCH_SHIFT
from components.data.crop import RATIO_STEPS, TRIES

MASK = np.uint64((1 << EPOCH_SHIFT) - 1)
_UNIT = 1.0 / 9007199254740992.0
_TRIES = np.int64(TRIES)
_STEPS = np.uint64(RATIO_STEPS)


@nb.njit(nogil=True)
def mix(z):
    """splitmix64; see `counter.mix`."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(nogil=True)
def draw(seed, key, number):
    """Random bits; see `counter.draws`."""
    return mix(mix(mix(seed) ^ key) + np.uint64(number))


@nb.njit(nogil=True)
def unit(bits):
    """float64 in [0, 1); see `counter.unit`."""
    return np.float64(bits >> np.uint64(11)) * _UNIT


@nb.njit(nogil=True)
def below(bits, limit):
    """int64 in [0, limit); see `counter.below`."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@nb.njit(nogil=True)
def random_box(seed, key, height, width, scale, ratio, table):
    """(top, left, height, width); see `crop.random_boxes`. `scale` and `ratio` are float64 arrays of two."""
    for attempt in range(_TRIES):
        first = 4 * attempt + 1
        area = np.float64(height * width) * (scale[0] + (scale[1] - scale[0]) * unit(draw(seed, key, first)))
        aspect = table[below(draw(seed, key, first + 1), _STEPS)]
        w = np.int64(np.floor(np.sqrt(area * aspect) + 0.5))
        h = np.int64(np.floor(np.sqrt(area / aspect) + 0.5))
        if 0 < w <= width and 0 < h <= height:
            top = below(draw(seed, key, first + 2), height - h + 1)
            left = below(draw(seed, key, first + 3), width - w + 1)
            return top, left, h, w
    return centred_box(height, width, ratio)


@nb.njit(nogil=True)
def centred_box(height, width, ratio):
    """See `crop.centred_box`."""
    h, w = height, width
    if width < ratio[0] * height:
        h = min(height, np.int64(np.floor(width / ratio[0] + 0.5)))
    elif width > ratio[1] * height:
        w = min(width, np.int64(np.floor(height * ratio[1] + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w


@nb.njit(nogil=True)
def mirrored(seed, key, probability):
    """Whether the image is flipped; see `crop.flips`."""
    return unit(draw(seed, key, 0)) < probability


@nb.njit(nogil=True)
def mirror(image):
    """Swaps the columns of an (H, W, 3) image in place."""
    height, width = image.shape[0], image.shape[1]
    for y in range(height):
        for x in range(width // 2):
            for c in range(3):
                held = image[y, x, c]
                image[y, x, c] = image[y, width - 1 - x, c]
                image[y, width - 1 - x, c] = held
