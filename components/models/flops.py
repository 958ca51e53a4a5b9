"""Counting what one image costs, without computing it."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def forward_macs(model: nn.Module, resolution: int) -> int:
    """Multiply-accumulates of one image's forward pass: convolutions and matrix products, as torch counts them.

    Runs on shapes alone (torch's "meta" device), so it takes neither memory nor time of the model's size, and leaves
    the model as it is.

    Args:
        model: takes (N, 3, R, R). Its parameters may themselves be on "meta".
        resolution: image side R in pixels; for a ViT the one it is set to.
    """
    shapes = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, (image,))
    return counter.get_total_flops() // 2
