"""The training step: clean or adversarial, in full or reduced precision.

This module and components.attack need only torch and timm, so that they can be copied to a bare GPU machine and
measured. Nothing here waits for the device; results are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attack.apgd import AttackResult
from components.attack.losses import cross_entropy, full_precision, kl
from components.attack.training_attacks import TRAINING_ATTACKS, AttackSettings


class StepResult(NamedTuple):
    """Figures of one step over all workers, still on the device."""

    sums: Tensor
    """(3,) sums over images: loss; increase of the loss by the attack; images whose predicted class the attack changed.

    The increase counts from the attack's start. Cross-entropy: loss in the update's forward, less that at the image
    itself (APGD) or at the random start (FGSM with one). TRADES: the divergence from the clean prediction in the
    update's forward, which is 0 at the image itself. Changed classes count from the start too; TRADES' start is the
    image with noise.
    """
    grad_norm: Tensor
    """L2 norm of the gradient, before clipping."""


BeforeMicroBatch = Callable[[slice], None]
"""Called with the rows of a worker's share that the next forwards take."""
Reduce = Callable[[Iterable[nn.Parameter], Tensor], Tensor]
"""Sums the gradients over workers, in place, and returns the sum of the figures (n,) that are sent with them."""


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
    attack: AttackSettings | None = None,
    noise: Tensor | None = None,
    precision: Precision,
    global_batch: int,
    reduce: Reduce | None = None,
    clip: float | None = None,
    micro_batch_size: int = 0,
    before_micro_batch: BeforeMicroBatch | None = None,
) -> StepResult:
    """Updates the weights once.

    Args:
        model: in training mode.
        images: (B, C, H, W) in [0, 1], this worker's share of the batch.
        targets: (B,) classes or (B, K) probabilities.
        attack: the attack, or None for a clean step.
        noise: (B, C, H, W) for attacks with a random start: uniform in [-1, 1] (FGSM), normal (TRADES).
        precision: of the forwards.
        global_batch: images over all workers; the loss is divided by it, so gradients add up over workers.
        reduce: sums gradients over workers; None with one worker.
        clip: largest gradient norm.
        micro_batch_size: most images in one forward and backward; 0 takes all at once.
        before_micro_batch: called before each micro-batch, for what is drawn row by row (stochastic depth).
    """
    optimizer.zero_grad(set_to_none=True)
    parts, size = [], micro_batch_size or len(images)
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        if before_micro_batch is not None:
            before_micro_batch(rows)
        starts = None if noise is None else noise[rows]
        parts.append(_accumulate(model, images[rows], targets[rows], starts, attack, precision, global_batch))
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = torch.stack(parts).sum(dim=0)
    if reduce is not None:
        sums = reduce(parameters, sums)
    return StepResult(sums, _update(optimizer, parameters, precision.scaler, clip))


def _accumulate(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    noise: Tensor | None,
    attack: AttackSettings | None,
    precision: Precision,
    global_batch: int,
) -> Tensor:
    """Attack, forward and backward of a micro-batch; returns the sums of `StepResult`."""
    found = None
    if attack is not None:
        with precision.autocast():
            found = find_adversarial(model, images, targets, attack, noise)
    with precision.autocast():
        if attack is not None and attack.loss == "trades":
            assert found is not None
            loss, divergence, logits = _trades(model, images, found.x_adv, targets, attack.trades_beta)
        else:
            logits = model(images if found is None else found.x_adv)
            loss, divergence = cross_entropy(logits, targets), None
    total = loss.sum()
    scaled = total / global_batch
    (precision.scaler.scale(scaled) if precision.scaler else scaled).backward()
    zero = torch.zeros_like(total).detach()
    if found is None:
        return torch.stack([total.detach(), zero, zero])
    gained = (loss - found.start_loss if divergence is None else divergence).detach().sum()
    flipped = (logits.detach().argmax(dim=1) != found.start_prediction).sum().to(total.dtype)
    return torch.stack([total.detach(), gained, flipped])


def find_adversarial(
    model: nn.Module, images: Tensor, targets: Tensor, attack: AttackSettings, noise: Tensor | None = None
) -> AttackResult:
    """Finds adversarial examples for training, in the caller's autocast context.

    Args:
        noise: (B, C, H, W), distributed as the attack's row in `TRAINING_ATTACKS` says.
    """
    return _function(attack.name)(model, images, targets, attack, noise)


@cache
def _function(name: str) -> Callable[..., AttackResult]:
    module, _, function = TRAINING_ATTACKS[name].function.partition(":")
    return getattr(import_module(module), function)


def _trades(
    model: nn.Module, images: Tensor, x_adv: Tensor, targets: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns clean cross-entropy + beta KL(clean || adversarial) (B,), the divergence (B,), and adversarial logits."""
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
