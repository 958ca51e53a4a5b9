"""Counts the FLOPs of a training step: each convolution and matrix product of its forwards and backwards, from shapes.

The formulas are torch's own except one: torch (2.14) takes the weight gradient of a grouped convolution for that of a
dense one, which counts ConvNeXt's depthwise layers several hundred times. It has as many multiplications as the
forward, and is counted so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from components.train.train_step import AttackSettings, Precision, train_step

_CONVOLUTION_BACKWARD = cast(Any, torch.ops.aten).convolution_backward


def step_flops(build: Callable[[], nn.Module], attack: AttackSettings | None, *, resolution: int, classes: int) -> int:
    """Returns the FLOPs of one image's training step (attack, forward, backward), counted operator by operator.

    Args:
        build: makes the network; called under torch's "meta" device, so nothing is computed.
        attack: the attack, or None for a clean step.
    """
    with torch.device("meta"):
        model = build().train()
        images, targets = torch.empty(1, 3, resolution, resolution), torch.empty(1, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Counter() as counter:
        train_step(model, optimizer, images, targets, attack=attack, precision=Precision("cpu"), global_batch=1)
    return counter.total


class Counter(TorchDispatchMode):
    """Adds up the FLOPs of the operators that run inside the block, in `total`.

    `torch.utils.flop_counter.FlopCounterMode` also follows modules, and its hooks refuse `torch.autograd.grad`.
    """

    total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operator and counts it."""
        options = dict(kwargs or {})
        result = func(*args, **options)
        packet = func._overloadpacket
        if packet is _CONVOLUTION_BACKWARD:
            self.total += convolution_backward_flops(*args)
        elif packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **options, out_val=result))
        return result


def convolution_backward_flops(grad_out: Tensor, x: Tensor, weight: Tensor, *options: Any) -> int:
    """Returns the FLOPs of a convolution's backward: the forward's for each of the gradients by input and by weight.

    In the forward each entry of the output meets the whole kernel of its channel once. `options` are the operator's
    further arguments; the last one selects the gradients: by input, by weight, by bias.
    """
    wanted, transposed = options[-1], options[-4]
    assert not transposed, "no network here has transposed convolutions"
    forward = 2 * grad_out.shape[0] * math.prod(grad_out.shape[2:]) * weight.numel()
    return forward * (int(wanted[0]) + int(wanted[1]))
