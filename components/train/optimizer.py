"""AdamW's parameter groups and the learning-rate schedule, as the paper's code or as usual practice has them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

_START = 1e-4
"""The first learning rate, in units of the peak (released code)."""


def decayed(model: nn.Module, groups: Literal["sane", "faithful"], *, convolutional: bool) -> dict[str, bool]:
    """Whether each trainable parameter is decayed, by name.

    "sane": not biases, other 1-D weights (norms, layer scale), positions and class tokens. "faithful": what the
    released code does; convolutional networks leave out only names with `bn` or `.bias` (norm weights and layer scale
    are decayed), transformers leave out 1-D weights and `.bias` (positions and the class token are decayed).

    Args:
        convolutional: the network is a ConvNeXt or a ResNet; only matters for "faithful".
    """
    rule = _sane if groups == "sane" else _faithful_conv if convolutional else _faithful_other
    return {name: rule(name, p) for name, p in model.named_parameters() if p.requires_grad}


def _sane(name: str, parameter: torch.Tensor) -> bool:
    tokens = ("pos_embed", "cls_token", "reg_token", "dist_token")
    return parameter.ndim > 1 and not name.endswith(".bias") and name.rpartition(".")[2] not in tokens


def _faithful_conv(name: str, parameter: torch.Tensor) -> bool:
    return "bn" not in name and ".bias" not in name


def _faithful_other(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and ".bias" not in name


def is_convolutional(name: str) -> bool:
    """The released code's question, asked of the network's name."""
    return "convnext" in name or "resnet" in name


def build_optimizer(
    model: nn.Module,
    *,
    groups: Literal["sane", "faithful"],
    convolutional: bool,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """AdamW (eps 1e-8) with two groups; its learning rate is set before every step by `set_lr`."""
    decide = decayed(model, groups, convolutional=convolutional)
    named = dict(model.named_parameters())
    parts = [
        {"params": [named[name] for name, yes in decide.items() if yes], "weight_decay": weight_decay},
        {"params": [named[name] for name, yes in decide.items() if not yes], "weight_decay": 0.0},
    ]
    # fused writes one kernel a step instead of several a tensor, on CPU too.
    return torch.optim.AdamW([part for part in parts if part["params"]], lr=0.0, betas=betas, eps=1e-8, fused=fused)


def learning_rate(position: float, *, lr: float, lr_min: float, peak: float, epochs: float) -> float:
    """The learning rate at `position` epochs since the start.

    Linear from 1e-4 lr at 0 to lr at epoch `peak`, then a cosine to `lr_min` at epoch `epochs`; both are evaluated at
    whole epochs and joined linearly inside them (released code, main.py:230-243 and 956-958).
    """
    epoch = min(math.floor(position), math.ceil(epochs))
    here, ahead = (_at_epoch(e, lr, lr_min, peak, epochs) for e in (epoch, epoch + 1))
    return here + (ahead - here) * (position - epoch)


def _at_epoch(epoch: float, lr: float, lr_min: float, peak: float, epochs: float) -> float:
    epoch = min(epoch, epochs)
    if epoch < peak:
        return lr * (_START + (1 - _START) * epoch / peak)
    through = (epoch - peak) / (epochs - peak) if epochs > peak else 1.0
    return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * through))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
