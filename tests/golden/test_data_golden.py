"""Numbers that must not move: an order, crops and images under a fixed seed.

If one of these changes on purpose, raise the version of the stages that depend on it.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from components.data import sources
from components.data.crop import RandomResizedCrop, draw_flips, random_boxes
from components.data.randomness import sample_keys
from components.data.sampler import BatchSampler, held_out_positions

ORDER_0 = [137, 820, 283, 712, 125, 155, 40, 422]
ORDER_1 = [259, 580, 973, 435, 666, 28, 537, 255]
BOXES = [[25, 71, 204, 260], [122, 170, 94, 82], [22, 21, 232, 300], [45, 127, 171, 189]]
FLIPS = [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0]
HELD_OUT = [1, 8, 14, 21, 23, 28]
DIGITS = "47bbbb86236fd91a"
SHAPES = {
    "disc": 115.2,
    "ring": 119.5,
    "half_disc": 106.4,
    "crescent": 109.3,
    "triangle": 98.7,
    "square": 106.2,
    "star": 103.5,
    "cross": 112.3,
    "arrow": 108.6,
    "heart": 117.5,
    "corner": 111.9,
    "bars": 110.2,
}


def test_order() -> None:
    order = BatchSampler(np.arange(1000), 10, seed=1)
    assert order.epoch(0)[:8].tolist() == ORDER_0
    assert order.epoch(1)[:8].tolist() == ORDER_1


def test_crops_and_flips() -> None:
    keys = sample_keys(np.arange(4), 2)
    assert random_boxes(RandomResizedCrop(), 1, keys, np.full(4, 256), np.full(4, 341)).tolist() == BOXES
    assert draw_flips(1, sample_keys(np.arange(16), 2), 0.5).astype(int).tolist() == FLIPS


def test_split() -> None:
    assert sorted(held_out_positions([0] * 10 + [1] * 20, 0.2, 7)) == HELD_OUT


def test_digits_pixels() -> None:
    sha = hashlib.sha256()
    for split, name, pixels in itertools.islice(sources.draw_digits(), 100):
        sha.update(f"{split}/{name}".encode() + pixels.tobytes())
    assert sha.hexdigest()[:16] == DIGITS


def test_shapes_pixels() -> None:
    """Rounded means over each class: independent of the last bit of a machine's sine."""
    means = {}
    for split, name, pixels in sources.draw_shapes():
        if split == "val":
            means.setdefault(name, []).append(pixels.mean())
    assert {name: round(float(np.mean(values)), 1) for name, values in means.items()} == SHAPES
