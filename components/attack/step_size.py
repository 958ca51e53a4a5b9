"""APGD's step sizes: when they shrink, and which images restart from their best point.

Both schedules have `step`, the step size (B, 1, 1, 1), and `check`, called after every iteration with that iterate's
loss (B,). It updates `step` and returns a mask (B,) of the images to restart, or None if this iteration has no check.

Sources: Croce and Hein 2020, section 3 (Linf, L2); Croce and Hein 2021, section 3 (L1); as released in AutoAttack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.attack.projections import per_image

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
