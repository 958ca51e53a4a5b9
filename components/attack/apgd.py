"""APGD as the paper trains with it: few steps, no random start, the best or the last iterate.

Semantics of the released training attack (Singh, Croce, Hein 2023), which is Auto-PGD (Croce and Hein 2020; L1: 2021)
with a small number of steps. With two Linf steps both have size 2 eps: the first lands on x + eps sign(g), and in the
second the entries whose gradient sign flips land at a quarter of eps on the other side.

Nothing here waits for the device: no `.item()`, no boolean indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from components.attack.losses import Objective, cross_entropy
from components.attack.projections import TINY, norm_l2, per_image, project_l1, project_l2, project_linf
from components.attack.step_size import Halving, Sparsity

Norm = Literal["Linf", "L2", "L1"]
Form = Literal["best", "last"]
Centre = Literal["clamped", "given"]
_MOMENTUM = 0.75


@dataclass(frozen=True)
class Attack:
    """What an attack found.

    Attributes:
        x_adv: (B, C, H, W), in [0, 1] and within eps of the ball's centre (of pixels that lie farther outside [0, 1],
            their nearest end of it); detached.
        start_loss: (B,) loss at the start point: the image itself, or the other point to begin at.
        start_prediction: (B,) class predicted at the start point.
        loss: (B,) loss of `x_adv`; None in the form "last", which does not evaluate its last iterate.
    """

    x_adv: Tensor
    start_loss: Tensor
    start_prediction: Tensor
    loss: Tensor | None


def apgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    form: Form = "best",
    objective: Objective = cross_entropy,
    start: Tensor | None = None,
    centre: Centre = "clamped",
) -> Attack:
    """Attacks a batch with the model in eval mode and its parameters frozen; both are put back.

    Work: form "best" costs steps + 1 forwards (the last without a graph) and `steps` input gradients; form "last", the
    fast one, `steps` of each.

    Args:
        x: (B, C, H, W); may leave [0, 1], see `centre`.
        labels: (B,) class indices or (B, K) probabilities.
        norm: the ball's norm.
        eps: its radius in units of [0, 1] pixels, > 0.
        steps: number of gradient steps, >= 1.
        form: return the iterate with the largest loss, the start included, or simply the last one.
        objective: maximised, image by image.
        start: another start point, projected into the ball first; `x` clamped to [0, 1] when not given.
        centre: the ball lies around `x` clamped to [0, 1], or around `x` as given, as in the released code. There a
            pixel far outside [0, 1] (random erasing makes such) stays at 0 or 1, since its whole Linf ball lies beyond.
            The result is in [0, 1] either way, and the same for an `x` in [0, 1].

    Raises:
        ValueError: unknown norm, form or centre, steps < 1, eps <= 0.
    """
    _check(norm, eps, steps, form, centre)
    x = x.detach()
    inside = x.clamp(0, 1)
    run = _Run(model, inside if centre == "clamped" else x, labels, norm, eps, steps, objective)
    with frozen(model):
        return run.attack(inside if start is None else run.project(start.detach()), form)


def _check(norm: str, eps: float, steps: int, form: str, centre: str) -> None:
    if centre not in ("clamped", "given"):
        raise ValueError(f"centre {centre!r} is unknown; choose clamped or given")
    if norm not in ("Linf", "L2", "L1"):
        raise ValueError(f"norm {norm!r} is unknown; choose Linf, L2 or L1")
    if form not in ("best", "last"):
        raise ValueError(f"form {form!r} is unknown; choose best or last")
    if steps < 1 or eps <= 0:
        raise ValueError(f"steps must be at least 1 and eps above 0, got {steps} and {eps}")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; every module and parameter is put back as it was."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


_PROJECTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "Linf": project_linf,
    "L2": project_l2,
    "L1": project_l1,
}


class _Run:
    """One attack on one batch, in the ball around `x`."""

    def __init__(
        self, model: nn.Module, x: Tensor, labels: Tensor, norm: Norm, eps: float, steps: int, objective: Objective
    ) -> None:
        self.model, self.x, self.labels, self.objective = model, x, labels, objective
        self.norm, self.eps, self.steps = norm, eps, steps
        self.schedule = Sparsity(x, eps, steps) if norm == "L1" else Halving(x, eps, steps)

    @torch.no_grad()
    def project(self, point: Tensor) -> Tensor:
        """`point` brought into the ball and [0, 1]."""
        return _PROJECTIONS[self.norm](point, self.x, self.eps)

    def attack(self, start: Tensor, form: Form) -> Attack:
        """From `start`, which lies in the ball."""
        point = before = start
        gradient, loss, logits = self._gradient(point)
        start_loss, prediction = loss, logits.argmax(dim=1)
        best, best_gradient, best_loss = point, gradient, loss
        for done in range(1, self.steps + 1):
            weight = 1.0 if done == 1 else _MOMENTUM
            point, before = self._ascend(point, point - before, gradient, weight), point
            if done == self.steps:
                break
            gradient, loss, _ = self._gradient(point)
            better = loss > best_loss
            best, best_gradient = _where(better, point, best), _where(better, gradient, best_gradient)
            best_loss = torch.where(better, loss, best_loss)
            restart = self.schedule.check(done, loss, best_loss, best - self.x)
            if restart is not None:
                point, gradient = _where(restart, best, point), _where(restart, best_gradient, gradient)
        if form == "last":
            return Attack(point, start_loss, prediction, None)
        loss = self._loss_only(point)
        better = loss > best_loss
        return Attack(_where(better, point, best), start_loss, prediction, torch.where(better, loss, best_loss))

    def _gradient(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input gradient of the summed loss (a mean would push half-precision gradients to underflow)."""
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = self.model(point)
            loss = self.objective(logits, self.labels)
            (gradient,) = torch.autograd.grad(loss.sum(), [point])
        return gradient, loss.detach(), logits.detach()

    @torch.no_grad()
    def _loss_only(self, point: Tensor) -> Tensor:
        return self.objective(self.model(point), self.labels)

    @torch.no_grad()
    def _ascend(self, point: Tensor, momentum: Tensor, gradient: Tensor, weight: float) -> Tensor:
        step = self.schedule.step
        if self.norm == "L1":
            assert isinstance(self.schedule, Sparsity)
            return self.project(point + step * sparse_sign(gradient, self.schedule.top_k))
        direction = gradient / (norm_l2(gradient) + TINY) if self.norm == "L2" else gradient.sign()
        ahead = self.project(point + step * direction)
        return self.project(point + (ahead - point) * weight + momentum * (1 - weight))


def sparse_sign(gradient: Tensor, top_k: Tensor) -> Tensor:
    """The signs of the largest entries of each image, of L1 norm 1 in all.

    Args:
        gradient: (B, C, H, W).
        top_k: (B,) share of entries to keep; ties with the smallest one kept are kept too.
    """
    size = gradient.abs().flatten(1)
    entries = size.shape[1]
    rank = ((1 - top_k) * entries).clamp(0, entries - 1).long().unsqueeze(1)
    threshold = size.sort(dim=1).values.gather(1, rank)
    kept = gradient.sign() * (size >= threshold).view_as(gradient)
    return kept / (per_image(kept.abs().flatten(1).sum(dim=1), gradient) + 1e-10)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Image-wise choice by a mask (B,)."""
    return torch.where(per_image(mask, yes), yes, no)
