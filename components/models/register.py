"""Registers this package's networks with timm: after `import components.models`, `timm.create_model` builds them.

The ConvStem networks are timm's own with the stem replaced. Only new names are registered; timm's stay unchanged. No
weights are linked, and `pretrained=True` is refused: `components.models.weights` loads weights.

`pretrained_cfg` tells `timm.data.resolve_model_data_config` which images the bare network expects. Mean 0 and std 1
(raw [0, 1] pixels) is how the robust checkpoints of ConvNeXt-T/S/B/L-CvSt and ViT-B-CvSt were published; the others
have a normaliser with ImageNet statistics in front (for ViT-M-CvSt this is unknown, and ImageNet is assumed).

To add a network of a known family, add a row to `default_cfgs`, a function here, and a row to `families.FAMILIES`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from torch import nn

from components.errors import UserError
from components.models.convstem import replace_stem
from components.models.families import FAMILIES
from components.models.iso import IsotropicConvNeXt

_RAW: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_CONVNEXT: dict[str, Any] = {"first_conv": "stem.stem.0", "classifier": "head.fc", "pool_size": (7, 7)}
_ISOTROPIC: dict[str, Any] = {"classifier": "head", "pool_size": (14, 14)}
_VIT: dict[str, Any] = {"first_conv": "patch_embed.proj.stem.0", "classifier": "head", "fixed_input_size": True}
_SMALL: dict[str, Any] = {"input_size": (3, 32, 32), "crop_pct": 1.0, "classifier": "head.fc", "pool_size": (1, 1)}

default_cfgs = generate_default_cfgs(
    {
        "convnext_iso": {**_ISOTROPIC, "first_conv": "stem"},
        "convnext_iso_cvst": {**_ISOTROPIC, "first_conv": "stem.stem.0"},
        "convnext_tiny_cvst": {**_CONVNEXT, **_RAW},
        "convnext_small_cvst": {**_CONVNEXT, **_RAW},
        "convnext_base_cvst": {**_CONVNEXT, **_RAW},
        "convnext_large_cvst": {**_CONVNEXT, **_RAW},
        "vit_small_cvst": _VIT,
        "vit_medium_cvst": _VIT,
        "vit_base_cvst": {**_VIT, **_RAW},
        "convnext_micro": {**_SMALL, **_RAW, "first_conv": "stem.0"},
        "convnext_micro_cvst": {**_SMALL, **_RAW, "first_conv": "stem.stem.0"},
    }
)
"""timm's `register_model` looks up this name in the module of the function that it registers."""


def _register(variant: str, build: Any, pretrained: bool, **kwargs: Any) -> nn.Module:
    if pretrained:
        raise UserError(
            "timm has no weights of this network",
            where=variant,
            remedy="build it without pretrained=True, or open published weights with components.models.load_published",
        )
    return build_model_with_cfg(build, variant, pretrained, feature_cfg=_features(variant), **kwargs)


def _features(variant: str) -> dict[str, Any]:
    """Returns how timm's `features_only=True` splits such a network; the isotropic one cannot be split."""
    if variant.startswith("vit"):
        return {"out_indices": 3, "feature_cls": "getter"}
    return {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}


def _with_conv_stem(base: str, **kwargs: Any) -> nn.Module:
    return replace_stem(timm.create_model(base, pretrained=False, **kwargs))


def _conv(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    base = FAMILIES[variant.removesuffix("_cvst")].base
    return _register(variant, partial(_with_conv_stem, base), pretrained, **kwargs)


@register_model
def convnext_iso(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S (iso.): depth 18, width 384, 16x16 patches, no layer scale; 22,308,712 parameters."""
    return _register("convnext_iso", IsotropicConvNeXt, pretrained, **kwargs)


@register_model
def convnext_micro(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A ConvNeXt for 32 px images: depths 2-2-2-2, widths 32-48-64-96, 4x4 patches; this project's own."""
    size: dict[str, Any] = {"depths": (2, 2, 2, 2), "dims": (32, 48, 64, 96)}
    return _register("convnext_micro", ConvNeXt, pretrained, **{**size, **kwargs})


@register_model
def convnext_micro_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`convnext_micro` with ConvStem S4-2, 3 -> 16 -> 32."""
    return _conv("convnext_micro_cvst", pretrained, **kwargs)


@register_model
def convnext_tiny_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with ConvStem S4-2, 3 -> 48 -> 96; 28,627,432 parameters."""
    return _conv("convnext_tiny_cvst", pretrained, **kwargs)


@register_model
def convnext_small_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S with ConvStem S4-2, 3 -> 48 -> 96; 50,261,992 parameters."""
    return _conv("convnext_small_cvst", pretrained, **kwargs)


@register_model
def convnext_base_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-B with ConvStem S4-3, 3 -> 64 -> 96 -> 128; 88,753,416 parameters."""
    return _conv("convnext_base_cvst", pretrained, **kwargs)


@register_model
def convnext_large_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L with ConvStem S4-3, 3 -> 96 -> 144 -> 192; 198,134,680 parameters."""
    return _conv("convnext_large_cvst", pretrained, **kwargs)


@register_model
def convnext_iso_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S (iso.) with ConvStem S16(384); 23,035,624 parameters."""
    return _conv("convnext_iso_cvst", pretrained, **kwargs)


@register_model
def vit_small_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-S with ConvStem S16(384); 22,777,576 parameters."""
    return _conv("vit_small_cvst", pretrained, **kwargs)


@register_model
def vit_medium_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT3-M with ConvStem S16(512); 39,527,272 parameters."""
    return _conv("vit_medium_cvst", pretrained, **kwargs)


@register_model
def vit_base_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-B/16 with ConvStem S16(768); 87,147,112 parameters."""
    return _conv("vit_base_cvst", pretrained, **kwargs)
