"""The families of networks: which timm network a short name stands for, its pinned weights, and its allowed options.

The bases are those of Singh, Croce, Hein (NeurIPS 2023) as released: ViT-S is DeiT-S, ViT-M is DeiT3-M, ViT-B is the
plain ViT-B/16. The pinned tags were trained on ImageNet-1k alone. timm's *default* tags since 1.0 were not (they were
pretrained on 12k or 21k classes), so a tag is always named here and never left to timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from components.errors import UserError, nearest
from components.imagenet1k_tags import is_imagenet1k, other_data_in

Stem = Literal["patch", "conv"]
Normalize = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per RGB channel, for pixels in [0, 1]."""

IMAGENET_NORMALIZE: Normalize = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Family:
    """One network with two stems.

    Attributes:
        name: the name in recipes, without the stem.
        base: the timm network with the PatchStem.
        tag: the pinned ImageNet-1k tag of `base`; None if timm has no weights.
        resolution: side in pixels of the training images.
        multiple: sides must be multiples of this (patch size); 1 for fully convolutional networks.
        smallest: the smallest side the network takes.
    """

    name: str
    base: str
    tag: str | None
    resolution: int
    multiple: int
    smallest: int


def _family(name: str, base: str, tag: str | None, *, resolution: int = 224, vit: bool = False) -> Family:
    return Family(name, base, tag, resolution, multiple=16 if vit else 1, smallest=16 if vit else 32)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("convnext_tiny", "convnext_tiny", "fb_in1k"),
        _family("convnext_small", "convnext_small", "fb_in1k"),
        _family("convnext_base", "convnext_base", "fb_in1k"),
        _family("convnext_large", "convnext_large", "fb_in1k"),
        _family("convnext_iso", "convnext_iso", None, vit=True),
        _family("vit_small", "deit_small_patch16_224", "fb_in1k", vit=True),
        _family("vit_medium", "deit3_medium_patch16_224", "fb_in1k", vit=True),
        _family("vit_base", "vit_base_patch16_224", "augreg_in1k", vit=True),
        _family("convnext_micro", "convnext_micro", None, resolution=32),
    )
}
"""The families by name. `convnext_micro` is this project's own, for 32 px images."""

IMAGENET1K_TAGS: dict[str, str] = {f.name: f"{f.base}.{f.tag}" for f in FAMILIES.values() if f.tag}
"""Family -> the timm weights that a recipe starts from."""


def find_family(name: str) -> Family:
    """Returns the family called `name`.

    Raises:
        UserError: the name is unknown (the nearest known one is named).
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if name.removesuffix("_cvst") in FAMILIES:
        remedy = f"write name {name.removesuffix('_cvst')!r} and stem 'conv'"
    else:
        remedy = f"use one of: {', '.join(FAMILIES)}{nearest(name, FAMILIES)}"
    raise UserError("there is no such network", where="model.name", value=name, remedy=remedy)


def check_imagenet1k_tag(tag: str) -> str:
    """Returns `tag` if it names weights trained on ImageNet-1k alone, by timm's naming of tags.

    Args:
        tag: "network.tag" or the tag alone, such as "convnext_tiny.fb_in1k" or "fb_in1k".

    Raises:
        UserError: the tag is missing (timm would choose its default), or it names other data, or contains "_ft_", which
            in timm means that the weights were fine-tuned from weights trained on other data.
    """
    if is_imagenet1k(tag):
        return tag
    foreign = other_data_in(tag)
    known = ", ".join(IMAGENET1K_TAGS.values())
    why = f"the tag contains {foreign[0]!r}" if foreign else "the tag does not contain 'in1k'"
    raise UserError(
        f"these pretrained weights are not from ImageNet-1k alone: {why}",
        where="init",
        value=tag,
        remedy=f"use a pinned tag ({known}), or a recipe that allows other data",
    )


CONVNEXT_OPTIONS = ("depths", "dims", "kernel_sizes", "ls_init_value", "conv_mlp", "use_grn", "head_init_scale")
ISOTROPIC_OPTIONS = ("depth", "dim")
VIT_OPTIONS = (
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "img_size"),
    *("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate", "global_pool"),
)
OPTIONS = frozenset((*CONVNEXT_OPTIONS, *ISOTROPIC_OPTIONS, *VIT_OPTIONS, "drop_rate"))
"""Options of timm's networks that a recipe or a model card may set.

Other options are refused, because timm's `create_model` also takes options that open files or change its result.
"""


def network_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `kwargs` with JSON's lists as tuples.

    Raises:
        UserError: an option is not in `OPTIONS`.
    """
    for key in kwargs:
        if key not in OPTIONS:
            raise UserError(
                f"networks have no such option{nearest(key, OPTIONS)}",
                where="model.kwargs",
                value=key,
                remedy=f"use one of: {', '.join(sorted(OPTIONS))}",
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
