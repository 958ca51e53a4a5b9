"""The training step: clean or adversarial, in full or reduced precision.

This module and the attack room need only torch and timm, so that they can be copied to a bare GPU machine and measured.
Nothing here waits for the device; outcomes are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attack.apgd import Attack, apgd, frozen
from components.attack.fgsm import fgsm
from components.attack.losses import cross_entropy, full_precision, kl, kl_from

_TRADES_START = 1e-3
"""Standard deviation in pixel units of TRADES' start point (Zhang et al. 2019): the divergence has no gradient at 0."""


@dataclass(frozen=True)
class Threat:
    """The training attack of one step; the fields of the configuration, with this step's radius."""

    norm: Literal["Linf", "L2", "L1"]
    eps: float
    steps: int
    form: Literal["best", "last"] = "best"
    kind: Literal["apgd", "fgsm"] = "apgd"
    loss: Literal["ce", "trades"] = "ce"
    beta: float = 6.0
    fgsm_step: float = 1.25
    centre: Literal["clamped", "given"] = "clamped"


class Outcome(NamedTuple):
    """Figures of one step over all workers, still on the device."""

    sums: Tensor
    """(3,) sums over images: loss; what the attack added; images whose predicted class it changed.

    What it added counts from its start. Cross-entropy: that of the update's forward, less that at the image itself
    (APGD) or at the random start (FGSM with one). TRADES: the divergence from the clean prediction in the update's
    forward, which is 0 at the image itself. Changed classes count from the start too; TRADES' is the image with noise.
    """
    grad_norm: Tensor
    """L2 norm of the gradient, before clipping."""


EachPiece = Callable[[slice], None]
"""Told which rows of a worker's share the next forwards are about."""
Reduce = Callable[[Iterable[nn.Parameter], Tensor], Tensor]
"""Adds gradients up over workers, in place, and returns the sum of the figures (n,) that travel with them."""


@dataclass(frozen=True)
class Precision:
    """Autocast to `dtype` on `device`, with a loss scaler for fp16."""

    device: str
    dtype: torch.dtype = torch.float32
    scaler: torch.amp.GradScaler | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """The context of every forward."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    threat: Threat | None = None,
    noise: Tensor | None = None,
    precision: Precision,
    global_batch: int,
    reduce: Reduce | None = None,
    clip: float | None = None,
    chunk: int = 0,
    each_piece: EachPiece | None = None,
) -> Outcome:
    """One update of the weights.

    Args:
        model: in training mode.
        images: (B, C, H, W) in [0, 1], this worker's share of the batch.
        targets: (B,) classes or (B, K) probabilities.
        threat: the attack, or None for a clean step.
        noise: (B, C, H, W) for attacks with a random start: uniform in [-1, 1] (FGSM), normal (TRADES).
        precision: of the forwards.
        global_batch: images over all workers; the loss is divided by it, so gradients add up over workers.
        reduce: adds gradients up over workers; None with one worker.
        clip: largest gradient norm.
        chunk: at most so many images in one forward and backward; 0 takes all at once.
        each_piece: called before each of these pieces with its rows, for what is drawn row by row (stochastic depth).
    """
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for start in range(0, len(images), chunk or len(images)):
        rows = slice(start, start + (chunk or len(images)))
        if each_piece is not None:
            each_piece(rows)
        starts = None if noise is None else noise[rows]
        parts.append(_accumulate(model, images[rows], targets[rows], starts, threat, precision, global_batch))
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = torch.stack(parts).sum(dim=0)
    if reduce is not None:
        sums = reduce(parameters, sums)
    return Outcome(sums, _update(optimizer, parameters, precision.scaler, clip))


def _accumulate(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    noise: Tensor | None,
    threat: Threat | None,
    precision: Precision,
    global_batch: int,
) -> Tensor:
    """Attack, forward and backward of some images; returns the sums of `Outcome`."""
    attack = None
    if threat is not None:
        with precision.autocast():
            attack = find_adversarial(model, images, targets, threat, noise)
    with precision.autocast():
        if threat is not None and threat.loss == "trades":
            assert attack is not None
            loss, divergence, logits = _trades(model, images, attack.x_adv, targets, threat.beta)
        else:
            logits = model(images if attack is None else attack.x_adv)
            loss, divergence = cross_entropy(logits, targets), None
    total = loss.sum()
    scaled = total / global_batch
    (precision.scaler.scale(scaled) if precision.scaler else scaled).backward()
    zero = torch.zeros_like(total).detach()
    if attack is None:
        return torch.stack([total.detach(), zero, zero])
    gained = (loss - attack.start_loss if divergence is None else divergence).detach().sum()
    flipped = (logits.detach().argmax(dim=1) != attack.start_prediction).sum().to(total.dtype)
    return torch.stack([total.detach(), gained, flipped])


def find_adversarial(
    model: nn.Module, images: Tensor, targets: Tensor, threat: Threat, noise: Tensor | None = None
) -> Attack:
    """Adversarial examples for training, in the caller's autocast context.

    TRADES (Zhang et al. 2019, and its released code): the divergence from the prediction on the clean image, both in
    eval mode, is raised from a point 1e-3 normal noise away from it, here brought into the ball.
    """
    if threat.kind == "fgsm":
        return fgsm(model, images, targets, eps=threat.eps, noise=noise, step=threat.fgsm_step)
    settings = {
        "norm": threat.norm,
        "eps": threat.eps,
        "steps": threat.steps,
        "form": threat.form,
        "centre": threat.centre,
    }
    if threat.loss != "trades":
        return apgd(model, images, targets, **settings)
    assert noise is not None, "TRADES needs a start point away from the image"
    start = (images + _TRADES_START * noise).clamp(0, 1)
    with frozen(model):
        with torch.no_grad():
            clean = model(images)
        return apgd(model, images, targets, objective=kl_from(clean), start=start, **settings)


def _trades(
    model: nn.Module, images: Tensor, x_adv: Tensor, targets: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Per image (B,) cross-entropy on it + beta KL(clean || adversarial), and that divergence; adversarial logits."""
    clean, adversarial = model(images), model(x_adv)
    log_p, log_q = (F.log_softmax(full_precision(z), dim=1) for z in (clean, adversarial))
    divergence = kl(log_p, log_q)
    return cross_entropy(clean, targets) + beta * divergence, divergence, adversarial


def _update(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    scaler: torch.amp.GradScaler | None,
    clip: float | None,
) -> Tensor:
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return norm.detach()
