"""The cost of a training step in FLOPs, the peak speed of the device, and the memory in use.

A step's FLOPs are those of one forward, counted by torch from shapes alone, times the forwards and backwards of the
step; the gradient by the input and the gradient by the weights cost a forward each. (torch's own count of a backward is
not used: in version 2.14 it takes the weight gradient of a depthwise convolution for that of a dense one.) The peak is
that of a large matrix product in the training's precision, measured once on a GPU, or the recipe's `peak_tflops`. On a
CPU no peak is measured: cores are shared and change their clock, so it would mean little, and the utilisation stays
unknown.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import nn

from components.attack.apgd import frozen
from components.attack.training_attacks import TRAINING_ATTACKS, AttackSettings
from components.models import forward_macs

_SIDE, _PRODUCTS = 8192, 8
"""Side and number of the matrix products that measure a GPU's peak."""


def step_flops(model: nn.Module, attack: AttackSettings | None, *, resolution: int) -> float:
    """Returns the floating-point operations of a training step per image, of convolutions and matrix products.

    Args:
        model: takes (B, 3, R, R); it is not changed, and nothing is computed.
        attack: the attack, or None for a clean step.
    """
    with frozen(model):
        macs = forward_macs(model, resolution)
    return 2.0 * macs * forwards(attack)


def forwards(attack: AttackSettings | None) -> int:
    """Returns the cost of a step in forwards: 3 for an update (TRADES updates on two images), and the attack's."""
    update = 3
    if attack is None:
        return update
    return TRAINING_ATTACKS[attack.name].forwards(attack) + (2 * update if attack.loss == "trades" else update)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Measures the FLOP/s of large matrix products in `dtype` on one GPU; takes a few hundredths of a second.

    None on a CPU, and on a GPU without memory for them.
    """
    if device.type != "cuda":
        return None
    try:
        return _products_per_second(device, dtype) * 2 * _SIDE**3
    except torch.OutOfMemoryError:
        return None


def _products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    torch.mm(one, other)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(one, other)
    torch.cuda.synchronize(device)
    return _PRODUCTS / (time.perf_counter() - started)


def memory_gib(device: torch.device) -> float:
    """Returns the peak memory so far in GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)
