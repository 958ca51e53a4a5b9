"""Heavy augmentation that must not move: fixed images of fixed samples, in timm's form and in the released code's.

The digests also hold Pillow's own drawing; if they alone fail after an update of Pillow, the means show by how much.
If an image changes on purpose, raise the version of the stages that depend on it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from components.data.augment import FILLS, OPERATIONS, HeavyAugmentation, Step, apply_steps
from components.data.randomness import sample_keys

SIDE, SAMPLES = 48, 8

# (seed, epoch, match_released_code): mean of each image in units of 255, and a digest of all.
IMAGES: dict[tuple[int, int, bool], tuple[list[float], str]] = {
    (7, 0, False): ([128.9, 67.5, 125.1, 179.3, 127.0, 36.2, 63.9, 125.5], "0310e4c270c51a8d"),
    (7, 0, True): ([128.9, 33.6, 108.8, 179.3, 127.0, 36.2, 63.9, 125.5], "f34b411960f3c126"),
    (7, 3, False): ([122.9, 113.7, 72.4, 123.8, 121.2, 126.1, 127.9, 98.4], "c729ee4ae524bb90"),
    (7, 3, True): ([69.8, 97.6, 56.3, 78.2, 73.4, 78.3, 127.9, 98.4], "7e967f162b9f24d2"),
    (8, 0, False): ([120.5, 114.7, 128.1, 133.8, 128.0, 121.5, 125.9, 125.2], "a85df713ea8d0827"),
    (8, 0, True): ([64.2, 114.7, 128.1, 133.8, 128.0, 121.5, 109.6, 122.5], "9107c5e212ab163b"),
}

# Operation: mean at magnitude 9 in either direction, filled with the mean colour and with black.
DRAWN: dict[str, list[float]] = {
    "AutoContrast": [128.9, 128.9, 128.9, 128.9],
    "Equalize": [136.9, 136.9, 136.9, 136.9],
    "Invert": [126.1, 126.1, 126.1, 126.1],
    "Rotate": [127.8, 111.3, 126.7, 110.2],
    "PosterizeIncreasing": [65.4, 65.4, 65.4, 65.4],
    "SolarizeIncreasing": [102.1, 102.1, 102.1, 102.1],
    "SolarizeAdd": [177.3, 177.3, 177.3, 177.3],
    "ColorIncreasing": [130.4, 130.4, 128.8, 128.8],
    "ContrastIncreasing": [128.2, 128.2, 129.3, 129.3],
    "BrightnessIncreasing": [184.6, 184.6, 24.0, 24.0],
    "SharpnessIncreasing": [128.9, 128.9, 128.8, 128.8],
    "ShearX": [125.3, 109.8, 129.5, 114.0],
    "ShearY": [123.9, 108.4, 130.8, 115.3],
    "TranslateXRel": [122.1, 76.7, 123.8, 78.4],
    "TranslateYRel": [116.9, 71.5, 131.9, 86.5],
}


def pictures(n: int) -> npt.NDArray[np.uint8]:
    """Stripes of integer arithmetic, another set for each sample: (n, SIDE, SIDE, 3)."""
    row, column = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    plane = [(row * 5 + column * 3 + 40 * colour) % 256 for colour in range(3)]
    images = [np.stack([(one * (sample + 2) // 2 + 31 * sample) % 256 for one in plane], -1) for sample in range(n)]
    return np.stack(images).astype(np.uint8)


def augmented(seed: int, epoch: int, released: bool) -> npt.NDArray[Any]:
    augment, images = HeavyAugmentation.of(seed, match_released_code=released), pictures(SAMPLES)
    out = np.empty(images.shape, augment.dtype)
    augment.fill_batch(out, images, sample_keys(np.arange(SAMPLES), epoch))
    return out


def measured(seed: int, epoch: int, released: bool) -> tuple[list[float], str]:
    out = augmented(seed, epoch, released)
    means = out.mean(axis=(1, 2, 3), dtype=np.float64) * (255 if released else 1)
    return [round(float(mean), 1) for mean in means], hashlib.sha256(out.tobytes()).hexdigest()[:16]


def drawn(name: str) -> list[float]:
    (picture,) = pictures(1)
    steps = [(Step(name, 9.0, sign), fill) for sign in (1, -1) for fill in FILLS.values()]
    return [round(float(apply_steps(picture, [step], fill).mean()), 1) for step, fill in steps]


@pytest.mark.parametrize(("seed", "epoch", "released"), IMAGES)
def test_images(seed: int, epoch: int, released: bool) -> None:
    means, digest = IMAGES[seed, epoch, released]
    found = measured(seed, epoch, released)
    assert found[0] == means
    assert found[1] == digest


def test_operations() -> None:
    assert {name: drawn(name) for name in OPERATIONS} == DRAWN


def test_the_two_forms_differ_only_in_fill_and_noise() -> None:
    """A sample that neither moves nor loses pixels is the same in both."""
    timms, released = augmented(7, 0, False), augmented(7, 0, True)
    same = [np.array_equal(np.rint(b * 255), a) for a, b in zip(timms, released, strict=True)]
    assert same == [True, False, False, True, True, True, True, True]
