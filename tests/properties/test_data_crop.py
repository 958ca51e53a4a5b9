"""Crops and flips: inside the image, pure in (seed, epoch, sample), equal in NumPy and numba bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.crop import CenterCrop, RandomResizedCrop, centered_box, draw_flips, random_boxes, ratio_table
from components.data.randomness import below, draws, mix, sample_keys, unit
from components.errors import UserError

CROPS = [RandomResizedCrop(), RandomResizedCrop((0.9, 1.0), (0.2, 5.0)), RandomResizedCrop((1.0, 1.0), (1.0, 1.0))]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**24 - 1),
    st.lists(st.tuples(st.integers(0, 2**40 - 1), st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=20),
    st.sampled_from(CROPS),
)
def test_boxes_lie_in_the_image(
    seed: int, epoch: int, samples: list[tuple[int, int, int]], crop: RandomResizedCrop
) -> None:
    indices, heights, widths = map(np.array, zip(*samples, strict=True))
    top, left, h, w = random_boxes(crop, seed, sample_keys(indices, epoch), heights, widths).T
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) > 0
    assert (top + h <= heights).all()
    assert (left + w <= widths).all()


def test_a_crop_does_not_depend_on_the_other_samples_of_the_batch() -> None:
    keys = sample_keys(np.arange(50), 3)
    together = random_boxes(RandomResizedCrop(), 5, keys, np.full(50, 200), np.full(50, 300))
    for row in (0, 17, 49):
        alone = random_boxes(RandomResizedCrop(), 5, keys[row : row + 1], np.array([200]), np.array([300]))
        assert alone[0].tolist() == together[row].tolist()
    other = random_boxes(RandomResizedCrop(), 5, sample_keys(np.arange(50), 4), np.full(50, 200), np.full(50, 300))
    assert (together != other).any(axis=1).mean() > 0.9


def test_crops_have_the_asked_areas_and_ratios() -> None:
    boxes = random_boxes(
        RandomResizedCrop(), 0, sample_keys(np.arange(20000), 0), np.full(20000, 400), np.full(20000, 400)
    )
    area, ratio = boxes[:, 2] * boxes[:, 3] / 160000, boxes[:, 3] / boxes[:, 2]
    assert 0.078 < area.min() < 0.09
    assert 0.98 < area.max() <= 1.0
    assert abs(area.mean() - _mean_area_of_torchvisions_algorithm()) < 0.01
    assert 0.74 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.35
    # Uniform in its logarithm: as many wide as tall ones.
    assert 0.48 < (ratio > 1).mean() < 0.52


def _mean_area_of_torchvisions_algorithm() -> float:
    """torchvision's RandomResizedCrop.get_params on a square image, first try that fits."""
    rng, areas = np.random.default_rng(1), []
    while len(areas) < 20000:
        area, ratio = rng.uniform(0.08, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        if max(area * ratio, area / ratio) <= 1:
            areas.append(area)
    return float(np.mean(areas))


def test_flips_follow_their_probability() -> None:
    keys = sample_keys(np.arange(20000), 1)
    assert not draw_flips(1, keys, 0.0).any()
    assert draw_flips(1, keys, 1.0).all()
    assert 0.28 < draw_flips(1, keys, 0.3).mean() < 0.32
    assert (draw_flips(1, keys, 0.5) != draw_flips(1, sample_keys(np.arange(20000), 2), 0.5)).mean() > 0.45


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs of the reference generator for state 0 (Vigna, splitmix64.c): mix(0), mix(golden), ..."""
    states = np.array([0, 0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A], np.uint64)
    assert [hex(int(z)) for z in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.9, 1.1)])
def test_the_fallback_is_the_largest_centered_box(ratio: tuple[float, float]) -> None:
    assert centered_box(100, 100, ratio) == (0, 0, 100, 100)
    top, left, h, w = centered_box(10, 1000, ratio)
    assert (top, h) == (0, 10)
    assert abs(left + w / 2 - 500) <= 0.5
    assert w == np.floor(10 * ratio[1] + 0.5)
    assert centered_box(1000, 10, ratio)[3] == 10


def test_numba_and_numpy_agree_in_every_bit() -> None:
    kernels = pytest.importorskip("components.data.ffcv_decoder", reason="numba is not installed")
    rng = np.random.default_rng(0)
    n, seed = 3000, 2**62 + 12345
    indices, sizes = rng.integers(0, 2**40, n), rng.integers(1, 600, (2, n))
    for crop in CROPS:
        keys = sample_keys(indices, 77)
        ours = random_boxes(crop, seed, keys, *sizes)
        table, scale, ratio = ratio_table(crop.ratio), np.array(crop.scale), np.array(crop.ratio)
        theirs = [
            kernels.random_box(np.uint64(seed), key, int(h), int(w), scale, ratio, table)
            for key, h, w in zip(keys, *sizes, strict=True)
        ]
        assert ours.tolist() == [list(box) for box in theirs]
        mirrored = [kernels.is_flipped(np.uint64(seed), key, 0.5) for key in keys]
        assert draw_flips(seed, keys, 0.5).tolist() == mirrored


def test_random_numbers_are_uniform() -> None:
    bits = draws(9, sample_keys(np.arange(40000), 0), 5)
    assert abs(unit(bits).mean() - 0.5) < 0.01
    assert np.bincount(below(bits, 7)).min() > 40000 / 7 * 0.9
    assert below(np.array([2**64 - 1], np.uint64), 7).tolist() == [6]


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5)])
def test_impossible_crops_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="scale: not a range"):
        RandomResizedCrop(scale=scale)


def test_impossible_center_crops_are_refused() -> None:
    with pytest.raises(UserError, match="crop_pct"):
        CenterCrop(0.0)
