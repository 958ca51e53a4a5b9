"""APGD as the paper trains with it: few steps, no random start, the best or the last iterate.

Semantics of the released training attack (Singh, Croce, Hein 2023), which is Auto-PGD (Croce and Hein 2020; L1: 2021)
with a small number of steps. With two Linf steps both have size 2 eps: the first lands on x + eps sign(g), and in the
second the entries whose gradient sign flips land at a quarter of eps on the other side.

The step size follows one of two schedules: `Halving` for Linf and L2 (2020, section 3), `Sparsity` for L1 (2021,
section 3), both as released in AutoAttack. Each has `step`, the step size (B, 1, 1, 1), and `check`, called after every
iteration with that iterate's loss (B,): it updates `step` and returns a mask (B,) of the images to restart from their
best point, or None if this iteration has no check.

Nothing here waits for the device: no `.item()`, no boolean indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from components.attack.losses import Objective, cross_entropy, kl_from
from components.attack.projections import TINY, norm_l2, per_image, project_l1, project_l2, project_linf
from components.attack.training_attacks import AttackSettings

Norm = Literal["Linf", "L2", "L1"]
Iterate = Literal["best", "last"]
Centre = Literal["clamped", "given"]
_MOMENTUM = 0.75
_TRADES_START = 1e-3
"""Standard deviation in pixel units of TRADES' start point (Zhang et al. 2019): the divergence has no gradient at 0."""


@dataclass(frozen=True)
class AttackResult:
    """The adversarial examples of a batch.

    Attributes:
        x_adv: (B, C, H, W), in [0, 1] and within eps of the ball's centre (of pixels that lie farther outside [0, 1],
            their nearest end of it); detached.
        start_loss: (B,) loss at the start point: the image itself, or the given start point.
        start_prediction: (B,) class predicted at the start point.
        loss: (B,) loss of `x_adv`; None for the last iterate, which is not evaluated.
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
    return_iterate: Iterate = "best",
    objective: Objective = cross_entropy,
    start: Tensor | None = None,
    centre: Centre = "clamped",
) -> AttackResult:
    """Attacks a batch with the model in eval mode and its parameters frozen; both are restored.

    Cost: `steps` forwards and input gradients; the best iterate costs one more forward, without a graph.

    Args:
        x: (B, C, H, W); may leave [0, 1], see `centre`.
        labels: (B,) class indices or (B, K) probabilities.
        norm: the ball's norm.
        eps: its radius in units of [0, 1] pixels, > 0.
        steps: number of gradient steps, >= 1.
        return_iterate: the iterate with the largest loss (the start point counts too), or the last one.
        objective: maximised, image by image.
        start: another start point, projected into the ball first; `x` clamped to [0, 1] when not given.
        centre: centre of the ball: `x` clamped to [0, 1], or `x` as given, as in the released code. There a pixel far
            outside [0, 1] (random erasing makes such pixels) stays at 0 or 1, since its whole Linf ball is outside.
            The result is in [0, 1] either way, and the same for an `x` in [0, 1]. For Linf and L2 this is what the
            released code does. Its L1 step does not clip: for such an `x` its result leaves [0, 1] by up to 6.4, and
            differs from this one.

    Raises:
        ValueError: unknown norm, iterate or centre, steps < 1, eps <= 0.
    """
    _check(norm, eps, steps, return_iterate, centre)
    x = x.detach()
    inside = x.clamp(0, 1)
    run = _Run(model, inside if centre == "clamped" else x, labels, norm, eps, steps, objective)
    with frozen(model):
        return run.attack(inside if start is None else run.project(start.detach()), return_iterate)


def apgd_for_training(
    model: nn.Module, images: Tensor, targets: Tensor, settings: AttackSettings, noise: Tensor | None = None
) -> AttackResult:
    """Runs APGD with one step's settings; see `training_attacks`.

    TRADES (Zhang et al. 2019, and its released code): the divergence from the prediction on the clean image, both in
    eval mode, is raised from a point 1e-3 normal noise away from it. Here that point is projected onto the ball.

    Args:
        noise: (B, C, H, W), normal; only TRADES needs it.
    """
    given = {name: getattr(settings, name) for name in ("norm", "eps", "steps", "return_iterate", "centre")}
    if settings.loss != "trades":
        return apgd(model, images, targets, **given)
    assert noise is not None, "TRADES needs a start point away from the image"
    start = (images + _TRADES_START * noise).clamp(0, 1)
    with frozen(model):
        with torch.no_grad():
            clean = model(images)
        return apgd(model, images, targets, objective=kl_from(clean), start=start, **given)


def _check(norm: str, eps: float, steps: int, return_iterate: str, centre: str) -> None:
    if centre not in ("clamped", "given"):
        raise ValueError(f"centre {centre!r} is unknown; choose clamped or given")
    if norm not in ("Linf", "L2", "L1"):
        raise ValueError(f"norm {norm!r} is unknown; choose Linf, L2 or L1")
    if return_iterate not in ("best", "last"):
        raise ValueError(f"iterate {return_iterate!r} is unknown; choose best or last")
    if steps < 1 or eps <= 0:
        raise ValueError(f"steps must be at least 1 and eps above 0, got {steps} and {eps}")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; every module and parameter is restored."""
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
        """Projects `point` onto the ball and [0, 1]."""
        return _PROJECTIONS[self.norm](point, self.x, self.eps)

    def attack(self, start: Tensor, return_iterate: Iterate) -> AttackResult:
        """Attacks from `start`, a point in the ball."""
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
        if return_iterate == "last":
            return AttackResult(point, start_loss, prediction, None)
        loss = self._loss_only(point)
        better = loss > best_loss
        return AttackResult(_where(better, point, best), start_loss, prediction, torch.where(better, loss, best_loss))

    def _gradient(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns input gradient, loss and logits. The loss is summed: a mean would underflow in half precision."""
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
    """Returns the signs of the largest entries of each image, scaled to L1 norm 1.

    Args:
        gradient: (B, C, H, W).
        top_k: (B,) share of entries to keep; entries equal to the smallest kept one are kept too.
    """
    size = gradient.abs().flatten(1)
    entries = size.shape[1]
    rank = ((1 - top_k) * entries).clamp(0, entries - 1).long().unsqueeze(1)
    threshold = size.sort(dim=1).values.gather(1, rank)
    kept = gradient.sign() * (size >= threshold).view_as(gradient)
    return kept / (per_image(kept.abs().flatten(1).sum(dim=1), gradient) + 1e-10)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Chooses per image by a mask (B,)."""
    return torch.where(per_image(mask, yes), yes, no)


_OSCILLATION = 0.75
_SPARSITY_KEPT, _L1_DECAY, _L1_SMALLEST = 0.95, 1.5, 10.0
TRAINING_TOP_K = 0.05
"""Share of entries moved by the first L1 step in training (the released code; AutoAttack evaluates with 0.2)."""


class Halving:
    """Linf and L2: halves the step of images whose loss rose too rarely. Starts at 2 eps."""

    def __init__(self, x: Tensor, eps: float, steps: int) -> None:
        self.step = per_image(torch.full_like(x[:, 0, 0, 0], 2 * eps), x)
        self._interval = max(int(0.22 * steps), 1)
        self._shorten, self._shortest = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
        self._next = self._interval
        self._loss = self._rises = self._best = self._halved = None

    def check(self, done: int, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        """Checks after iteration number `done` (from 1); `best_delta` is not used."""
        # The table of losses starts with zeros, so the first iterate "rose" where its loss is above 0.
        before = torch.zeros_like(loss) if self._loss is None else self._loss
        rises = (loss > before).to(loss.dtype)
        self._rises = rises if self._rises is None else self._rises + rises
        self._loss = loss
        if done != self._next:
            return None
        halve = self._rises <= _OSCILLATION * self._interval
        if self._best is not None and self._halved is not None:
            halve = halve | (~self._halved & (self._best >= best_loss))
        self._best, self._halved, self._rises = best_loss, halve, None
        self.step = torch.where(per_image(halve, self.step), self.step / 2, self.step)
        self._interval = max(self._interval - self._shorten, self._shortest)
        self._next = done + self._interval
        return halve


class Sparsity:
    """L1: sets the number of entries moved by a step from the sparsity of the best point. Starts at eps."""

    def __init__(self, x: Tensor, eps: float, steps: int) -> None:
        self.step = per_image(torch.full_like(x[:, 0, 0, 0], eps), x)
        self.top_k = torch.full_like(x[:, 0, 0, 0], TRAINING_TOP_K)
        self._eps, self._interval, self._entries = eps, max(int(0.04 * steps), 1), x[0].numel()
        self._moved = torch.full_like(self.top_k, self._entries)

    def check(self, done: int, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        """Checks after iteration number `done` (from 1); the losses are not used."""
        if done % self._interval:
            return None
        moved = (best_delta != 0).flatten(1).sum(dim=1).to(self.top_k.dtype)
        sparser = moved / self._moved < _SPARSITY_KEPT
        shrunk = (self.step / _L1_DECAY).clamp(self._eps / _L1_SMALLEST, self._eps)
        self.step = torch.where(per_image(sparser, self.step), torch.full_like(self.step, self._eps), shrunk)
        self.top_k, self._moved = moved / self._entries / _L1_DECAY, moved
        return sparser
