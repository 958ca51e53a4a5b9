"""The second check of every adversarial image."""

import pytest
import torch
from torch import nn

from components.evaluate.attack import distances, verify_adversarial


class Threshold(nn.Module):
    """Class 1 where the mean is above 0.5."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


CLEAN = torch.full((1, 1, 2, 2), 0.4)
LABEL = torch.tensor([0])


@pytest.mark.parametrize(
    ("adversarial", "eps", "holds"),
    [
        (0.6, 0.2, True),
        (0.6, 0.1999, False),  # outside the ball
        (0.6, 0.2 / (1 + 0.5e-5), True),  # inside the slack
        (0.6, 0.2 / (1 + 2e-5), False),
        (0.45, 0.2, False),  # not misclassified
        (1.01, 0.7, False),  # outside the range
    ],
)
def test_adversarial_image_holds_if_misclassified_inside_ball_and_range(adversarial, eps, holds):
    moved = torch.full((1, 1, 2, 2), adversarial, dtype=torch.float64)
    found = verify_adversarial(Threshold(), CLEAN.double().fill_(0.4), moved, LABEL, norm="Linf", eps=eps)
    assert bool(found.holds[0]) is holds


def test_distances_are_those_of_the_definition_in_float64():
    moved = CLEAN + torch.tensor([0.1, -0.2, 0.3, 0.0]).reshape(1, 1, 2, 2)
    for norm, value in (("Linf", 0.3), ("L2", 0.14**0.5), ("L1", 0.6)):
        found = distances(CLEAN, moved, norm)
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(value, abs=1e-7)


def test_a_narrow_margin_is_noticed():
    for offset, narrow in ((1e-6, True), (1e-3, False)):
        moved = torch.full((1, 1, 2, 2), 0.5 + offset, dtype=torch.float64)
        found = verify_adversarial(Threshold(), CLEAN, moved, LABEL, norm="Linf", eps=0.2)
        assert bool(found.holds[0])
        assert bool(found.narrow[0]) is narrow


def test_nan_logits_never_hold():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), float("nan"))

    for label in (0, 1):
        assert not verify_adversarial(Broken(), CLEAN, CLEAN + 0.1, torch.tensor([label]), norm="Linf", eps=0.2).holds[
            0
        ]
