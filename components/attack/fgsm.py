"""FGSM with a random start (Wong, Rice, Kolter 2020): one gradient step from a random point of the Linf ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.attack.apgd import AttackResult, frozen
from components.attack.losses import Objective, cross_entropy
from components.attack.projections import project_linf
from components.attack.training_attacks import AttackSettings


def fgsm(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    noise: Tensor | None,
    alpha: float = 1.0,
    objective: Objective = cross_entropy,
) -> AttackResult:
    """Takes one signed gradient step of size `alpha` * eps from x + eps * noise and projects the result onto the ball.

    Cost: one forward, one input gradient.

    Args:
        x: (B, C, H, W); clamped to [0, 1] first.
        noise: (B, C, H, W) in [-1, 1]; None starts at the image itself, which leads to catastrophic overfitting.
        alpha: step size in units of eps; 1.25 in Wong et al., 1 in the released code of the paper.
    """
    x = x.detach().clamp(0, 1)
    start = x if noise is None else project_linf(x + eps * noise, x, eps)
    with frozen(model), torch.enable_grad():
        point = start.detach().requires_grad_()
        logits = model(point)
        loss = objective(logits, labels)
        (gradient,) = torch.autograd.grad(loss.sum(), [point])
    x_adv = project_linf(start + alpha * eps * gradient.sign(), x, eps)
    return AttackResult(x_adv, loss.detach(), logits.detach().argmax(dim=1), None)


def fgsm_for_training(
    model: nn.Module, images: Tensor, targets: Tensor, settings: AttackSettings, noise: Tensor | None = None
) -> AttackResult:
    """Runs FGSM with one step's settings; see `training_attacks`.

    Args:
        noise: (B, C, H, W), uniform in [-1, 1]; None starts at the image.
    """
    return fgsm(model, images, targets, eps=settings.eps, noise=noise, alpha=settings.fgsm_alpha)
