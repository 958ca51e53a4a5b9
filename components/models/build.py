"""Builds a network from its name, its stem and its number of classes, and counts its multiply-accumulates.

All random values (weights, a new stem, a new head) are drawn from torch's global generator on the CPU. The caller seeds
it with `torch.manual_seed` directly before; the same seed then gives the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import timm
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

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
    """Builds a classifier that takes (N, 3, R, R) float images in [0, 1] and returns (N, num_classes) logits.

    Args:
        name: a family of `components.models.families`, such as "convnext_tiny" or "vit_small".
        stem: "patch" or "conv".
        num_classes: outputs, at least 1.
        resolution: image side R in pixels; None for the family's own (224; 32 for convnext_micro).
        normalize: mean and std of a normaliser put in front, "imagenet", or None for raw pixels (as the paper's
            ConvNeXt and ViT-B).
        pretrained: timm tag of the PatchStem network, "fb_in1k" or "convnext_tiny.fb_in1k"; downloaded by timm. With
            stem "conv" the stem keeps its initial values; with another number of classes, the head does. Which tags a
            recipe allows is checked elsewhere: see `check_imagenet1k_tag`.
        drop_path: stochastic depth rate; the paper trains with 0.
        kwargs: further options of the network, those of `components.models.families`.

    Raises:
        UserError: unknown name or stem, an image side or option that the network does not take, or weights that cannot
            be downloaded.
    """
    family = find_family(name)
    _check(family, stem, num_classes, resolution)
    options = {"num_classes": num_classes, "drop_path_rate": drop_path, **network_options(kwargs)}
    architecture = family.base if stem == "patch" else f"{family.name}_cvst"
    body = _create(family, architecture, options)
    if pretrained is not None:
        transplant(_load_pretrained(family, pretrained, options).state_dict(), body)
    if resolution is not None:
        set_resolution(body, resolution)
    if normalize is None:
        return body
    return NormalizedModel(body, IMAGENET_NORMALIZE if normalize == "imagenet" else normalize)


def bare_tag(family: Family, pretrained: str) -> str:
    """Returns the tag alone, from "tag" or "network.tag".

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
            remedy=f"use one of: {', '.join(known)}" if known else "train this network from random weights",
        )
    return tag


def tag_normalize(name: str, pretrained: str) -> Normalize:
    """Returns the mean and std that the weights of a timm tag were trained with (not ImageNet's for `augreg_in1k`).

    Raises:
        UserError: as `bare_tag`.
    """
    entry = _tag_entry(name, pretrained)
    return cast(Normalize, (tuple(entry.mean), tuple(entry.std)))


def tag_classes(name: str, pretrained: str) -> int:
    """Returns the number of outputs of the classifier in the weights of a timm tag; 0 if they have none.

    Raises:
        UserError: as `bare_tag`.
    """
    return _tag_entry(name, pretrained).num_classes


def _tag_entry(name: str, pretrained: str) -> Any:
    family = find_family(name)
    entry = timm.get_pretrained_cfg(f"{family.base}.{bare_tag(family, pretrained)}")
    assert entry is not None
    return entry


def forward_macs(model: nn.Module, resolution: int) -> int:
    """Counts the multiply-accumulates of one image's forward pass: convolutions and matrix products, as torch does.

    Runs on shapes alone (torch's "meta" device), so it needs neither the memory nor the time of the model's size, and
    leaves the model unchanged.

    Args:
        model: takes (N, 3, R, R). Its parameters may themselves be on "meta".
        resolution: image side R in pixels; for a ViT the one it is set to.
    """
    shapes = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, (image,))
    return counter.get_total_flops() // 2


def _check(family: Family, stem: str, num_classes: int, resolution: int | None) -> None:
    if stem not in ("patch", "conv"):
        raise UserError("there is no such stem", where="model.stem", value=stem, remedy="give 'patch' or 'conv'")
    if num_classes < 1:
        raise UserError(
            "there must be at least one class", where="num_classes", value=num_classes, remedy="give 1 or more"
        )
    if resolution is not None:
        check_resolution(resolution, multiple=family.multiple, smallest=family.smallest)


def _create(family: Family, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(architecture, **options)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{family.name} cannot be built with these options: {_first_line(error)}",
            where="model.kwargs",
            remedy="leave out or correct the options that do not fit this network",
        ) from error


def _load_pretrained(family: Family, tag: str, options: Mapping[str, Any]) -> nn.Module:
    architecture = f"{family.base}.{bare_tag(family, tag)}"
    try:
        return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the pretrained weights could not be loaded: {_first_line(error)}",
            where=architecture,
            remedy="check the network connection and timm's cache, give a local file, or train from random weights",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
