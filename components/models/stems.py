"""Finding a network's stem, and replacing a PatchStem by the ConvStem that belongs to it."""

from __future__ import annotations

from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from components.errors import UserError
from components.models.convstem import ConvStem, stem_s4_2, stem_s4_3, stem_s16
from components.models.iso import IsotropicConvNeXt
from components.models.normalize import network

THREE_CONVOLUTIONS_FROM = 128
"""ConvNeXt width from which the stem has three convolutions: T and S (96) have two, B (128) and L (192) three."""


def stem_prefix(model: nn.Module) -> str:
    """Where the stem sits in the network: "stem." (ConvNeXt) or "patch_embed.proj." (ViT)."""
    return "patch_embed.proj." if isinstance(network(model), VisionTransformer) else "stem."


def find_stem(model: nn.Module) -> nn.Module:
    """The stem module: patch (Conv2d, or Conv2d with LayerNorm) or `ConvStem`."""
    return network(model).get_submodule(stem_prefix(model).rstrip("."))


def replace_stem(model: nn.Module) -> nn.Module:
    """Replace the PatchStem by the matching ConvStem, in place; every other weight stays as it is.

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
            "no PatchStem that a ConvStem could replace",
            where=type(body).__name__,
            remedy="Give a ConvNeXt with 4x4 patches, or a ViT or isotropic ConvNeXt with 16x16 patches",
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
