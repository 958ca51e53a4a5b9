"""What a training step costs, what the device could do, and how much memory is taken.

A step's FLOPs are those of one forward, counted by torch on shapes alone, times the forwards and backwards of the step;
the gradient by the input and the gradient by the weights cost a forward each. (torch's own count of a backward is not
used: in version 2.14 it takes the weight gradient of a depthwise convolution for that of a dense one.) The peak is that
of one large matrix product in the training's precision, measured once on a GPU, or the recipe's `peak_tflops`. On a CPU
nothing is measured: cores are shared and change their clock, so a peak measured there would say little, and the
utilisation stays unknown.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import nn

from components.attack.apgd import frozen
from components.models import forward_macs
from components.train.train_step import Threat

_SIDE, _PRODUCTS = 8192, 8
"""Of the matrix products that measure a GPU's peak."""


def step_flops(model: nn.Module, threat: Threat | None, *, resolution: int) -> float:
    """Floating-point operations of a training step for each image, of convolutions and matrix products.

    Args:
        model: takes (B, 3, R, R); left as it is, and nothing is computed.
        threat: the attack, or None for a clean step.
    """
    with frozen(model):
        macs = forward_macs(model, resolution)
    return 2.0 * macs * forwards(threat)


def forwards(threat: Threat | None) -> int:
    """What a step costs in forwards: 3 for the update, and for APGD 2 a step and 1 to choose the best iterate."""
    update = 3
    if threat is None:
        return update
    if threat.kind == "fgsm":
        return 2 + update
    attack = 2 * threat.steps + (threat.form == "best")
    # TRADES updates on clean and adversarial images, and attacks the clean prediction, which it has to make first.
    return attack + (2 * update + 1 if threat.loss == "trades" else update)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of large matrix products in `dtype` on one GPU, in some hundredths of a second.

    None on a CPU, and on a GPU without room for them.
    """
    if device.type != "cuda":
        return None
    try:
        return _products_a_second(device, dtype) * 2 * _SIDE**3
    except torch.OutOfMemoryError:
        return None


def _products_a_second(device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    torch.mm(one, other)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(one, other)
    torch.cuda.synchronize(device)
    return _PRODUCTS / (time.perf_counter() - started)


def memory_gib(device: torch.device) -> float:
    """The most memory so far, GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)
