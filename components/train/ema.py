"""The averaged (EMA) weights: on the training device, in float32, updated after every step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model's parameters; buffers are copied, never averaged.

    Averaging a constant buffer makes it drift: the published ViT-S has a normaliser damaged in that way.
    The form avg += (1 - decay) (weight - avg) loses less to rounding than decay * avg + (1 - decay) * weight.

    Args:
        model: the model to follow; the average starts at its weights.
        decay: share kept of the average in each step, 0 <= decay < 1 (0.9999 in the released weights).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        source = dict(model.named_parameters())
        self._pairs = [(mean, source[name]) for name, mean in self.model.named_parameters()]
        buffers = dict(model.named_buffers())
        self._copies = [(kept, buffers[name]) for name, kept in self.model.named_buffers()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present weights."""
        means: list[Tensor] = [mean for mean, _ in self._pairs]
        weights: list[Tensor] = [weight.detach() for _, weight in self._pairs]
        torch._foreach_lerp_(means, weights, 1.0 - self.decay)
        for kept, buffer in self._copies:
            kept.copy_(buffer)
