"""Building a network from its name, its stem and its number of classes.

Everything random here (weights, a fresh stem, a fresh head) is drawn from torch's global generator on the CPU: the
caller seeds it with `torch.manual_seed` just before, and the same seed then gives the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import timm
from torch import nn

from components.errors import UserError
from components.models.families import IMAGENET_NORMALIZE, Family, Normalize, Stem, find_family, network_options
from components.models.normalize import NormalizedModel
from components.models.resolution import check_resolution, set_resolution
from components.models.transplant import transplant


def build_model(
    name: str,
    *,
    stem: Stem = "patch",
    num_classes: int = 1000,
    resolution: int | None = None,
    normalize: Normalize | Literal["imagenet"] | None = None,
    pretrained: str | None = None,
    drop_path: float = 0.0,
    **kwargs: Any,
) -> nn.Module:
    """A classifier that takes (N, 3, R, R) float images in [0, 1] and gives (N, num_classes) logits.

    Args:
        name: a family of `components.models.families`, such as "convnext_tiny" or "vit_small".
        stem: "patch" or "conv".
        num_classes: outputs, at least 1.
        resolution: image side R in pixels; None for the family's own (224; 32 for convnext_micro).
        normalize: mean and std of a normaliser put in front, "imagenet", or None for raw pixels (as the paper's
            ConvNeXt and ViT-B).
        pretrained: timm tag of the PatchStem network, "fb_in1k" or "convnext_tiny.fb_in1k"; fetched by timm. With
            stem "conv" everything but the stem is taken from it; with another number of classes, all but the head.
            Which tags a recipe allows is the recipe's matter: see `check_imagenet1k_tag`.
        drop_path: stochastic depth rate; the paper trains without.
        kwargs: further options of the network, those of `components.models.families`.

    Raises:
        UserError: unknown name or stem, a side the network cannot take, an option it does not have, weights that
            cannot be had.
    """
    family = find_family(name)
    _check(family, stem, num_classes, resolution)
    options = {"num_classes": num_classes, "drop_path_rate": drop_path, **network_options(kwargs)}
    architecture = family.base if stem == "patch" else f"{family.name}_cvst"
    body = _create(family, architecture, options)
    if pretrained is not None:
        transplant(_fetch(family, pretrained, options).state_dict(), body)
    if resolution is not None:
        set_resolution(body, resolution)
    if normalize is None:
        return body
    return NormalizedModel(body, IMAGENET_NORMALIZE if normalize == "imagenet" else normalize)


def bare_tag(family: Family, pretrained: str) -> str:
    """The tag alone, of "tag" or "network.tag".

    Raises:
        UserError: the tag belongs to another network than the family's base, or timm does not have it.
    """
    architecture, _, tag = pretrained.rpartition(".")
    known = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{family.base}.*")]
    if architecture not in ("", family.base) or tag not in known:
        raise UserError(
            f"timm has no such weights for {family.name} ({family.base})",
            where="pretrained",
            value=pretrained,
            remedy=f"Known are {', '.join(known)}" if known else "Train this network from a random start",
        )
    return tag


def tag_normalize(name: str, pretrained: str) -> Normalize:
    """Mean and std that the weights of a timm tag were trained with. (Not ImageNet's for ViT-B's `augreg_in1k`.)

    Raises:
        UserError: as `bare_tag`.
    """
    entry = _tag_entry(name, pretrained)
    return cast(Normalize, (tuple(entry.mean), tuple(entry.std)))


def tag_classes(name: str, pretrained: str) -> int:
    """Outputs of the classifier that comes with the weights of a timm tag; 0 for weights without one.

    Raises:
        UserError: as `bare_tag`.
    """
    return _tag_entry(name, pretrained).num_classes


def _tag_entry(name: str, pretrained: str) -> Any:
    family = find_family(name)
    entry = timm.get_pretrained_cfg(f"{family.base}.{bare_tag(family, pretrained)}")
    assert entry is not None
    return entry


def _check(family: Family, stem: str, num_classes: int, resolution: int | None) -> None:
    if stem not in ("patch", "conv"):
        raise UserError("no such stem", where="model.stem", value=stem, remedy="Give 'patch' or 'conv'")
    if num_classes < 1:
        raise UserError("no classes to tell apart", where="num_classes", value=num_classes, remedy="Give 1 or more")
    if resolution is not None:
        check_resolution(resolution, multiple=family.multiple, smallest=family.smallest)


def _create(family: Family, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(architecture, **options)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{family.name} cannot be built with these options: {_first_line(error)}",
            where="model.kwargs",
            remedy="Leave out or mend what does not fit this network",
        ) from error


def _fetch(family: Family, tag: str, options: Mapping[str, Any]) -> nn.Module:
    architecture = f"{family.base}.{bare_tag(family, tag)}"
    try:
        return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the pretrained weights could not be had: {_first_line(error)}",
            where=architecture,
            remedy="Check the network and timm's cache, give a local file instead, or train from a random start",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
