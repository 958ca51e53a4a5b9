"""Checks every adversarial image again, by other means than the attack that found it.

A witness holds when the model, in fp32, gives it another class than the label, its perturbation's norm (in float64)
is at most eps (1 + 1e-5), and its pixels lie in [0, 1] within 1e-6. The library itself checks the class only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.evaluate.config import Norm

NORM_SLACK, RANGE_SLACK, NARROW_MARGIN = 1e-5, 1e-6, 1e-5


@dataclass(frozen=True)
class Checked:
    """What the check found for each of B images; all tensors (B,) on the CPU.

    Attributes:
        holds: misclassified, inside the ball, inside the range.
        distance: norm of the perturbation, float64.
        prediction: class given to the adversarial image.
        narrow: misclassified by a logit gap below 1e-5, which other hardware may round the other way.
    """

    holds: Tensor
    distance: Tensor
    prediction: Tensor
    narrow: Tensor


def check(model: nn.Module, clean: Tensor, adversarial: Tensor, labels: Tensor, *, norm: Norm, eps: float) -> Checked:
    """Checks adversarial images (B, C, H, W) against their clean ones and labels (B,)."""
    with torch.no_grad():
        logits = model(adversarial).double()
    prediction = logits.argmax(dim=1)
    far = distances(clean, adversarial, norm)
    pixels = adversarial.double().flatten(1)
    in_range = (pixels.amin(1) >= -RANGE_SLACK) & (pixels.amax(1) <= 1 + RANGE_SLACK)
    wrong = (prediction != labels) & torch.isfinite(logits).all(dim=1)
    holds = wrong & in_range & (far <= eps * (1 + NORM_SLACK))
    own = logits.gather(1, labels[:, None]).squeeze(1)
    narrow = wrong & (logits.amax(1) - own < NARROW_MARGIN)
    return Checked(holds.cpu(), far.cpu(), prediction.cpu(), narrow.cpu())


def distances(clean: Tensor, adversarial: Tensor, norm: Norm) -> Tensor:
    """Norm of each perturbation in float64: (B,)."""
    delta = (adversarial.double() - clean.double()).flatten(1)
    if norm == "Linf":
        return delta.abs().amax(dim=1)
    return delta.abs().sum(dim=1) if norm == "L1" else delta.square().sum(dim=1).sqrt()
