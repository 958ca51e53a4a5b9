"""FGSM with a random start (Wong, Rice, Kolter 2020): one gradient step from a random point of the Linf ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.attack.apgd import Attack, frozen
from components.attack.losses import Objective, cross_entropy
from components.attack.projections import project_linf


def fgsm(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    noise: Tensor | None,
    step: float = 1.0,
    objective: Objective = cross_entropy,
) -> Attack:
    """x + eps noise, then one signed gradient step of `step` * eps, projected back. One forward, one input gradient.

    Args:
        x: (B, C, H, W); clamped to [0, 1] first.
        noise: (B, C, H, W) in [-1, 1]; None starts at the image itself, which is known to overfit catastrophically.
        step: in units of eps; 1.25 in Wong et al., 1 in the released code of the paper.
    """
    x = x.detach().clamp(0, 1)
    start = x if noise is None else project_linf(x + eps * noise, x, eps)
    with frozen(model), torch.enable_grad():
        point = start.detach().requires_grad_()
        logits = model(point)
        loss = objective(logits, labels)
        (gradient,) = torch.autograd.grad(loss.sum(), [point])
    x_adv = project_linf(start + step * eps * gradient.sign(), x, eps)
    return Attack(x_adv, loss.detach(), logits.detach().argmax(dim=1), None)
