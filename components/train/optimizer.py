"""AdamW's parameter groups, the learning-rate schedule, and the averaged (EMA) weights.

Groups and schedule follow usual practice or the paper's code. The average is kept on the training device, in float32,
and updated after every step.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

NoWeightDecay = Literal["standard", "released_code"]

_START = 1e-4
"""The first learning rate, in units of the peak (released code)."""


def decayed(model: nn.Module, rule: NoWeightDecay, *, convolutional: bool) -> dict[str, bool]:
    """Returns for each trainable parameter, by name, whether it has weight decay.

    "standard": not biases, other 1-D weights (norms, layer scale), positions and class tokens. "released_code": in
    convolutional networks only names with `bn` or `.bias` are left out (norm weights and layer scale are decayed), in
    transformers 1-D weights and `.bias` (positions and the class token are decayed).

    Args:
        rule: which parameters have no weight decay.
        convolutional: the network is a ConvNeXt or a ResNet; only matters for "released_code".
    """
    released = _released_conv if convolutional else _released_other
    decide = _standard if rule == "standard" else released
    return {name: decide(name, p) for name, p in model.named_parameters() if p.requires_grad}


def _standard(name: str, parameter: torch.Tensor) -> bool:
    tokens = ("pos_embed", "cls_token", "reg_token", "dist_token")
    return parameter.ndim > 1 and not name.endswith(".bias") and name.rpartition(".")[2] not in tokens


def _released_conv(name: str, parameter: torch.Tensor) -> bool:
    return "bn" not in name and ".bias" not in name


def _released_other(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and ".bias" not in name


def is_convolutional(name: str) -> bool:
    """Whether the released code takes the network for a convolutional one, by its name."""
    return "convnext" in name or "resnet" in name


def build_optimizer(
    model: nn.Module,
    *,
    no_weight_decay: NoWeightDecay,
    convolutional: bool,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Returns AdamW (eps 1e-8) with two groups; `set_lr` sets its learning rate before every step."""
    decide = decayed(model, no_weight_decay, convolutional=convolutional)
    named = dict(model.named_parameters())
    parts = [
        {"params": [named[name] for name, yes in decide.items() if yes], "weight_decay": weight_decay},
        {"params": [named[name] for name, yes in decide.items() if not yes], "weight_decay": 0.0},
    ]
    # fused runs one kernel per step instead of several per tensor, on CPU too.
    return torch.optim.AdamW([part for part in parts if part["params"]], lr=0.0, betas=betas, eps=1e-8, fused=fused)


def learning_rate(position: float, *, lr: float, min_lr: float, peak: float, epochs: float) -> float:
    """Returns the learning rate at `position` epochs since the start.

    Linear from 1e-4 lr at 0 to lr at epoch `peak`, then a cosine to `min_lr` at epoch `epochs`; both are evaluated at
    whole epochs and joined linearly inside them (released code, main.py:230-243 and 956-958).
    """
    epoch = min(math.floor(position), math.ceil(epochs))
    here, ahead = (_at_epoch(e, lr, min_lr, peak, epochs) for e in (epoch, epoch + 1))
    return here + (ahead - here) * (position - epoch)


def _at_epoch(epoch: float, lr: float, min_lr: float, peak: float, epochs: float) -> float:
    epoch = min(epoch, epochs)
    if epoch < peak:
        return lr * (_START + (1 - _START) * epoch / peak)
    through = (epoch - peak) / (epochs - peak) if epochs > peak else 1.0
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * through))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


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
