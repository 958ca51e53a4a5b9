"""Every operation of our RandAugment against timm's own, pixel by pixel; random erasing against timm's rectangles."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from timm.data.random_erasing import RandomErasing

from components.data import augment
from components.data.augment import OPERATIONS, Step, apply_steps, draw_steps
from components.data.randomness import draws

FILL = (124, 116, 104)


def picture(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((56, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_is_timms(name: str, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # timm negates where random.random() > 0.5.
    monkeypatch.setattr(random, "random", lambda: 0.4 if sign > 0 else 0.6)
    options = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    # timm's posterize at 10 keeps no bits, which Pillow 13 refuses.
    for magnitude in (0.0, 3.3, 7.77, 9.0, 9.99 if name.startswith("Posterize") else 10.0):
        theirs = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=options)(Image.fromarray(picture()))
        ours = apply_steps(picture(), [Step(name, magnitude, sign)], FILL)
        assert np.array_equal(ours, np.asarray(theirs)), magnitude


def test_posterize_keeps_no_bits_at_the_largest_magnitude() -> None:
    assert not apply_steps(picture(), [Step("PosterizeIncreasing", 10.0, 1)], FILL).any()


def test_the_operations_are_timms_in_its_order() -> None:
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    assert [op.name for op in theirs.ops] == list(OPERATIONS)
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in theirs.ops} == {(0.5, 9, 0.5)}
    assert theirs.num_layers == 2


def test_operations_are_drawn_as_often_as_they_should() -> None:
    n = 20000
    steps = draw_steps(draws(3, np.arange(n, dtype=np.uint64)[:, None], np.arange(10, dtype=np.uint64)))
    counts = np.bincount([len(one) for one in steps], minlength=3) / n
    assert np.abs(counts - [0.25, 0.5, 0.25]).max() < 0.015
    every = [step for one in steps for step in one]
    shares = [sum(step.name == name for step in every) / len(every) for name in OPERATIONS]
    assert np.abs(np.array(shares) - 1 / 15).max() < 0.01
    magnitudes = np.array([step.magnitude for step in every])
    # N(9, 0.5) cut at 10: 2.3 % at the cut.
    assert abs(np.median(magnitudes) - 9.0) < 0.02
    assert abs((magnitudes == 10.0).mean() - 0.0228) < 0.005
    assert abs(np.quantile(magnitudes, 0.1587) - 8.5) < 0.03
    assert abs(np.mean([step.sign for step in every])) < 0.03


def test_rectangles_are_distributed_as_timms() -> None:
    n, height, width = 3000, 40, 60
    bits = draws(3, np.arange(n, dtype=np.uint64)[:, None], np.arange(augment.ERASING_DRAWS, dtype=np.uint64))
    ours = [r for r in augment.draw_rectangles(bits, 1.0, height, width) if r]
    timms = RandomErasing(1.0, mode="pixel", device="cpu")
    random.seed(0)
    erased = (timms(torch.zeros(n, 1, height, width)) != 0).flatten(2)
    areas = erased.sum((1, 2)).numpy()
    assert len(ours) == n
    mine = np.array([r.height * r.width for r in ours])
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert abs(np.quantile(mine, share) - np.quantile(areas, share)) < 0.03 * height * width
    assert max(r.height for r in ours) < height
    assert max(r.top + r.height for r in ours) == height
    assert min(r.left for r in ours) == 0
    off = augment.draw_rectangles(bits, 0.25, height, width)
    assert abs(sum(r is not None for r in off) / n - 0.25) < 0.03
