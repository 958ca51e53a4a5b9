"""Stochastic depth (Huang et al. 2016) whose draws belong to the image and not to the worker or the order of forwards.

timm's DropPath draws from torch's global generator, so that two workers, or a batch taken in pieces, would train
another network than one worker does. Here whether a layer is left out for an image is a pure function of (seed, epoch,
batch, the image's row in the global batch, layer). All forwards of a step in training mode share the draw: with TRADES
the clean and the adversarial image go through the same layers. In eval mode, and so inside every attack, nothing is
left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn

_STREAM = 0x6465707468  # keeps these draws apart from others made from the same (seed, epoch, batch)


class RowDropPath(nn.Module):
    """timm's DropPath, told what it leaves out: x is dropped with `drop_prob`, else divided by 1 - drop_prob.

    Attributes:
        scale: (B,) factor of each image of the next forwards, 0 or 1 / (1 - drop_prob); None before the first draw.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); as it is in eval mode."""
        if not self.training:
            return x
        assert self.scale is not None, "draw_depth says before each step which layers are left out"
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def own_depth(model: nn.Module) -> nn.Module:
    """Replaces every DropPath of timm in `model` by one that is told its draws; the same model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                setattr(parent, name, RowDropPath(child.drop_prob))
    return model


def draw_depth(
    model: nn.Module, rows: slice, *, seed: int, epoch: int, batch: int, device: torch.device
) -> Callable[[slice], None] | None:
    """Draws what each layer leaves out of one step; None for a network without stochastic depth.

    Args:
        model: as `own_depth` returned it.
        rows: this worker's rows of the global batch.
        device: where the network is.

    Returns:
        A function to be called before the forwards of each piece of the worker's share, with the piece's rows in it.
    """
    layers = [module for module in model.modules() if isinstance(module, RowDropPath)]
    if not layers:
        return None
    drawn = np.random.default_rng([_STREAM, seed, epoch, batch]).random((rows.stop, len(layers)))[rows]
    probabilities = np.array([layer.drop_prob for layer in layers])
    scales = (drawn >= probabilities) / (1 - probabilities)
    table = torch.from_numpy(scales.T.astype(np.float32)).to(device)

    def take(piece: slice) -> None:
        for layer, scale in zip(layers, table):
            layer.scale = scale[piece]

    return take
