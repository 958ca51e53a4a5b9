"""Mixup, cutmix and soft targets against timm's, and against their own past."""

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target

from components.train.batch import Mix, draw_mix, mix_images, neighbours, soft_targets

SETTINGS = {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "side": (32, 32)}


def _batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 3, 32, 32, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def _timm_order():
    """The order in which timm's partner, B-1-i, is our neighbour."""
    return torch.tensor([0, 2, 4, 6, 7, 5, 3, 1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_mixup_is_timms(share):
    images, labels = _batch()
    order = _timm_order()
    theirs = images[order] * share + images[order].flip(0) * (1 - share)
    torch.testing.assert_close(mix_images(images, Mix(share))[order], theirs)
    targets = soft_targets(labels, 10, 0.1, Mix(share))
    torch.testing.assert_close(targets[order], mixup_target(labels[order], 10, share, 0.1))


def test_cutmix_is_timms():
    images, labels = _batch()
    order, mix = _timm_order(), Mix(1 - 6 * 10 / 1024, (3, 9, 20, 30))
    theirs = images[order].clone()
    theirs[:, :, 3:9, 20:30] = theirs.flip(0)[:, :, 3:9, 20:30]
    assert torch.equal(mix_images(images, mix)[order], theirs)
    torch.testing.assert_close(
        soft_targets(labels, 10, 0.1, mix)[order], mixup_target(labels[order], 10, mix.share, 0.1)
    )


def test_smoothing_alone():
    targets = soft_targets(torch.tensor([2]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025]]))


def test_the_input_is_left_alone():
    images, _ = _batch()
    before = images.clone()
    mix_images(images, Mix(0.5))
    mix_images(images, Mix(0.5, (0, 16, 0, 16)))
    assert torch.equal(images, before)


def test_draws_are_a_pure_function_of_their_place():
    np.random.seed(1)
    first = [draw_mix(5, 2, k, **SETTINGS) for k in range(4)]
    np.random.seed(2)
    torch.manual_seed(3)
    assert [draw_mix(5, 2, k, **SETTINGS) for k in range(4)] == first
    assert len({mix.share for mix in first}) == 4
    assert draw_mix(6, 2, 0, **SETTINGS) != first[0]
    assert draw_mix(5, 3, 0, **SETTINGS) != first[0]


def test_golden_draws():
    """Change these only together with the version of the training stages."""
    drawn = [draw_mix(0, 0, k, **SETTINGS) for k in range(4)]
    assert [(round(mix.share, 6), mix.box) for mix in drawn] == GOLDEN


GOLDEN = [(0.938477, (25, 32, 23, 32)), (0.306978, None), (0.483398, (9, 32, 9, 32)), (0.78418, (9, 26, 0, 13))]


def test_distribution_is_timms():
    drawn = [draw_mix(1, 0, k, **SETTINGS) for k in range(4000)]
    cut = [mix for mix in drawn if mix.box]
    assert 0.47 < len(cut) / len(drawn) < 0.53
    plain = np.array([mix.share for mix in drawn if not mix.box])
    assert plain.mean() == pytest.approx(0.5, abs=0.02)
    assert plain.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01), "the variance of Beta(0.8, 0.8)"
    for mix in cut:
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32
        assert mix.share == 1 - (bottom - top) * (right - left) / 1024


def test_probability_and_switches():
    assert draw_mix(0, 0, 0, **{**SETTINGS, "prob": 0.0}) == Mix(1.0)
    assert all(draw_mix(0, 0, k, **{**SETTINGS, "cutmix": 0.0}).box is None for k in range(50))
    assert all(draw_mix(0, 0, k, **{**SETTINGS, "mixup": 0.0}).box for k in range(50))
    mixed = [draw_mix(0, 0, k, **{**SETTINGS, "prob": 0.3}).share != 1.0 for k in range(1000)]
    assert 0.24 < np.mean(mixed) < 0.36


def test_neighbours_need_an_even_batch():
    assert neighbours(torch.arange(4)).tolist() == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="even number, got 3"):
        neighbours(torch.arange(3))
