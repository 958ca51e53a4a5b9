"""The normaliser as the first layer of a model, so that attacks and data loaders only see pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import nn

from components.models.families import Normalize


class Normalizer(nn.Module):
    """(x - mean) / std per channel.

    Mean and std are constants of the model card, not state: they are left out of the state dict, so that averaging
    weights cannot change them. (In the published ViT-S-CvSt they were averaged with the weights, and the mean drifted.)
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, normalize: Normalize) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), normalize, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [0, 1] -> (N, C, H, W) with about zero mean and unit variance."""
        return (images - self.mean) / self.std


class NormalizedModel(nn.Module):
    """A normaliser followed by a network; state-dict names are `model.` + the network's."""

    def __init__(self, model: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = Normalizer(normalize)
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [0, 1] -> (N, classes)."""
        return self.model(self.normalize(images))


def network(model: nn.Module) -> nn.Module:
    """Returns the timm network inside `model`; `model` itself if it has no normaliser."""
    return model.model if isinstance(model, NormalizedModel) else model
