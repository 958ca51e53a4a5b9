"""ConvStem, the convolutional stem that replaces a network's patch embedding (PatchStem), and the replacement itself.

A ConvStem is a stack of 3x3 convolutions, each followed by a channel-first LayerNorm (eps 1e-6) and an exact (erf)
GELU. It sees overlapping pixels and reaches the stride of the PatchStem in several small steps. Layouts, from Singh,
Croce, Hein, "Revisiting Adversarial Training for ImageNet" (NeurIPS 2023) and the checkpoints published with it:

    S4-2    3 -> C/2 -> C, strides 2 2              ConvNeXt-T, -S (C = 96: 48, 96)
    S4-3    3 -> C/2 -> 3C/4 -> C, strides 2 2 1    ConvNeXt-B (C = 128: 64, 96, 128), -L (C = 192: 96, 144, 192)
    S16     3 -> 48 -> 96 -> 192 -> 384, strides 2 2 2 2, then a bare 1x1 convolution to D    ViT, isotropic ConvNeXt

Every convolution has a bias. The 3x3 layouts end in a GELU without a norm after it. The 1x1 convolution of S16 has
neither norm nor activation. The published stems have PyTorch's default convolution init (Kaiming-uniform weights and
*non-zero* biases), because they were attached after the network had initialised itself; so have these.

State-dict names are `stem.0`, `stem.1`, `stem.3`, ... inside the module, as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from components.errors import UserError
from components.models.iso import IsotropicConvNeXt
from components.models.normalize import network

NORM_EPS = 1e-6
"""eps of every LayerNorm in a ConvStem."""

S16_TRUNK = (48, 96, 192, 384)
"""Widths of the 3x3 convolutions of S16, the same for every network; only the 1x1 convolution's width differs."""


class ConvStem(nn.Module):
    """3x3 convolutions, each with LayerNorm and GELU, optionally closed by a bare 1x1 convolution.

    Args:
        widths: output channels of the 3x3 convolutions.
        strides: their strides; padding is always 1.
        project_to: output channels of the closing 1x1 convolution; None for no such convolution.
        in_channels: channels of the image.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), each 3x3 convolution of stride 2
    rounding up.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], *, project_to: int | None = None, in_channels: int = 3
    ) -> None:
        super().__init__()
        assert len(widths) == len(strides) > 0
        layers: list[nn.Module] = []
        channels, self.stride = in_channels, 1
        for width, stride in zip(widths, strides, strict=True):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1),
                LayerNorm2d(width, eps=NORM_EPS),
                nn.GELU(),
            ]
            channels, self.stride = width, self.stride * stride
        if project_to is not None:
            layers.append(nn.Conv2d(channels, project_to, kernel_size=1))
            channels = project_to
        self.out_channels = channels
        self.stem = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self.stem(images)


def stem_s4_2(width: int, in_channels: int = 3) -> ConvStem:
    """S4-2: in -> width/2 -> width, total stride 4 (ConvNeXt-T and -S with width 96)."""
    assert width % 2 == 0
    return ConvStem((width // 2, width), (2, 2), in_channels=in_channels)


def stem_s4_3(width: int, in_channels: int = 3) -> ConvStem:
    """S4-3(p) with p = width/2: in -> p -> 1.5p -> 2p, total stride 4: the third convolution has stride 1.

    ConvNeXt-B has width 128 (p = 64), ConvNeXt-L width 192 (p = 96).
    """
    assert width % 4 == 0
    return ConvStem((width // 2, width * 3 // 4, width), (2, 2, 1), in_channels=in_channels)


def stem_s16(width: int, in_channels: int = 3) -> ConvStem:
    """S16(width): in -> 48 -> 96 -> 192 -> 384, then 1x1 to width, total stride 16.

    Width 384 for ViT-S and isotropic ConvNeXt, 512 for ViT-M, 768 for ViT-B.
    """
    return ConvStem(S16_TRUNK, (2, 2, 2, 2), project_to=width, in_channels=in_channels)


THREE_CONVOLUTIONS_FROM = 128
"""ConvNeXt width from which the stem has three convolutions: T and S (96) have two, B (128) and L (192) three."""


def stem_prefix(model: nn.Module) -> str:
    """Returns the prefix of the stem's names in the network: "stem." (ConvNeXt) or "patch_embed.proj." (ViT)."""
    return "patch_embed.proj." if isinstance(network(model), VisionTransformer) else "stem."


def find_stem(model: nn.Module) -> nn.Module:
    """Returns the stem: a PatchStem (Conv2d, or Conv2d with LayerNorm) or a `ConvStem`."""
    return network(model).get_submodule(stem_prefix(model).rstrip("."))


def replace_stem(model: nn.Module) -> nn.Module:
    """Replaces the PatchStem by the matching ConvStem, in place; all other weights stay unchanged.

    The new stem has PyTorch's default init, drawn from the global random generator: seed it first
    (`torch.manual_seed`) for a reproducible stem. The layout follows the network: S4-2 or S4-3 for ConvNeXt by its
    width, S16 for ViT and isotropic ConvNeXt.

    Args:
        model: a network of this package or of timm's ConvNeXt and VisionTransformer classes, with its PatchStem, bare
            or inside a `NormalizedModel`.

    Returns:
        The same object.

    Raises:
        UserError: the network has no PatchStem of a kind with a known ConvStem.
    """
    body = network(model)
    first = _patch_convolution(find_stem(model)) if isinstance(body, _BODIES) else None
    if first is None:
        raise UserError(
            "there is no PatchStem that a ConvStem could replace",
            where=type(body).__name__,
            remedy="give a ConvNeXt with 4x4 patches, or a ViT or isotropic ConvNeXt with 16x16 patches",
        )
    stem = _matching_stem(first).to(device=first.weight.device, dtype=first.weight.dtype)
    parent, _, leaf = stem_prefix(model).rstrip(".").rpartition(".")
    setattr(body.get_submodule(parent), leaf, stem)
    return model


_BODIES = (ConvNeXt, IsotropicConvNeXt, VisionTransformer)


def _patch_convolution(stem: nn.Module) -> nn.Conv2d | None:
    first = stem[0] if isinstance(stem, nn.Sequential) and len(stem) == 2 else stem
    known = isinstance(first, nn.Conv2d) and first.kernel_size == first.stride and first.stride in ((4, 4), (16, 16))
    return first if known and isinstance(first, nn.Conv2d) else None


def _matching_stem(patch: nn.Conv2d) -> ConvStem:
    width, channels = patch.out_channels, patch.in_channels
    if patch.stride == (16, 16):
        return stem_s16(width, channels)
    return (stem_s4_3 if width >= THREE_CONVOLUTIONS_FROM else stem_s4_2)(width, channels)
