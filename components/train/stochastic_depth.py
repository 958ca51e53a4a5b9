"""Stochastic depth (Huang et al. 2016) with draws that depend on the image, not on the worker or the order of forwards.

timm's DropPath draws from torch's global generator, so two workers, or a batch taken in micro-batches, would train
another network than one worker does. Here the draw for a layer and an image is a pure function of (seed, epoch, batch,
the image's row in the global batch, layer). All forwards of a step in training mode share the draw: with TRADES the
clean and the adversarial image pass the same layers. In eval mode, and so in every attack, no layer is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn

_STREAM = 0x6465707468  # keeps these draws apart from others made from the same (seed, epoch, batch)


class RowDropPath(nn.Module):
    """timm's DropPath with draws from outside: x is dropped with `drop_prob`, else divided by 1 - drop_prob.

    Attributes:
        scale: (B,) factor of each image in the next forwards, 0 or 1 / (1 - drop_prob); None before the first draw.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); unchanged in eval mode."""
        if not self.training:
            return x
        assert self.scale is not None, "draw_drop_path has to be called before each step"
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def replace_drop_path(model: nn.Module) -> nn.Module:
    """Replaces every DropPath of timm in `model` by a `RowDropPath` and returns the same model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                setattr(parent, name, RowDropPath(child.drop_prob))
    return model


def draw_drop_path(
    model: nn.Module, rows: slice, *, seed: int, epoch: int, batch: int, device: torch.device
) -> Callable[[slice], None] | None:
    """Draws the dropped paths of one step; None for a network without stochastic depth.

    Args:
        model: returned by `replace_drop_path`.
        rows: this worker's rows of the global batch.
        device: the network's.

    Returns:
        A function to call before the forwards of each micro-batch, with its rows in the worker's share.
    """
    layers = [module for module in model.modules() if isinstance(module, RowDropPath)]
    if not layers:
        return None
    drawn = np.random.default_rng([_STREAM, seed, epoch, batch]).random((rows.stop, len(layers)))[rows]
    probabilities = np.array([layer.drop_prob for layer in layers])
    scales = (drawn >= probabilities) / (1 - probabilities)
    table = torch.from_numpy(scales.T.astype(np.float32)).to(device)

    def set_scales(rows: slice) -> None:
        for layer, scale in zip(layers, table):
            layer.scale = scale[rows]

    return set_scales
