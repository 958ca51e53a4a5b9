"""The isotropic ConvNeXt, which timm does not have: one resolution and one width from stem to head, like a ViT.

Source: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), section 3.3 and table 2: ConvNeXt-S (iso.), depth 18, width
384, 16x16 patches, 22.3 M parameters. Blocks are timm's ConvNeXt blocks without layer scale, which is how the robust
ConvNeXt-iso of Singh, Croce, Hein (NeurIPS 2023) was built.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import LayerNorm, trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from torch import nn

NORM_EPS = 1e-6
INIT_STD = 0.02
"""Standard deviation of the truncated normal that convolution and linear weights start from; biases start at zero."""


class IsotropicConvNeXt(nn.Module):
    """Patch embedding, `depth` ConvNeXt blocks of one width, average pooling, LayerNorm, linear head.

    Args:
        num_classes: outputs; 0 for the pooled features.
        depth, dim, patch_size: size of the network; the defaults are ConvNeXt-S (iso.).
        in_chans: image channels.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.

    Shapes: (N, in_chans, H, W) with H, W multiples of `patch_size` -> (N, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        depth: int = 18,
        dim: int = 384,
        patch_size: int = 16,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"IsotropicConvNeXt does not take {sorted(unknown)}")
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dim, dim
        self.patch_size, self.in_chans = patch_size, in_chans
        self.stem: nn.Module = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        rates = [drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.Sequential(*(ConvNeXtBlock(dim, ls_init_value=None, drop_path=rate) for rate in rates))
        self.norm = LayerNorm(dim, eps=NORM_EPS)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        self.apply(_init_weights)

    def get_classifier(self) -> nn.Module:
        """Returns the linear head (timm's interface)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one (timm's interface); pooling is always the average."""
        assert global_pool in (None, "avg")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init_weights(self.head)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, dim, H / patch_size, W / patch_size)."""
        return self.blocks(self.stem(images))

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(N, dim, h, w) -> (N, num_classes), or with `pre_logits` the normalised pooled features."""
        pooled = self.norm(features.mean(dim=(-2, -1)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(images))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
