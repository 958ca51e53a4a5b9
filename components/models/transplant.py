"""Moving weights from one stage's network into the next one's, where stem, head or resolution may differ.

Comparing two state dicts by name and shape, and saying in one line how they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from components.errors import UserError
from components.models.convstem import stem_prefix
from components.models.normalize import network

# MERGED

POSITION = "pos_embed"


def transplant(source_state: Mapping[str, torch.Tensor], target_model: nn.Module) -> list[str]:
    """Copy every weight that fits into `target_model`; say what stays as it was initialised.

    Only two parts may stay fresh, and each of them only as a whole: the stem, when its layout differs, and the
    classifier, when the number of classes differs. Position embeddings of another resolution are resampled.

    Args:
        source_state: state dict of a network of the same family, with or without the `model.` of a normalised model.
        target_model: freshly built (its fresh parts keep what they have), bare or normalised.

    Returns:
        Sorted names, in the bare network's state dict, of the tensors left fresh.

    Raises:
        UserError: any other difference: another family, depth or width.
    """
    body = network(target_model)
    source = bare_state(source_state)
    target = body.state_dict()
    if isinstance(body, VisionTransformer):
        source = _fit_position(source, body)
    fresh: set[str] = set()
    for part in (stem_prefix(body), _head_prefix(body)):
        ours, theirs = _part(target, part), _part(source, part)
        if compare(ours, theirs):
            fresh |= set(ours)
            source = {name: tensor for name, tensor in source.items() if name not in theirs}
    misfit: Misfit = compare({name: tensor for name, tensor in target.items() if name not in fresh}, source)
    if misfit:
        raise refuse(misfit, where="init", remedy="Start from a stage that trained the same network")
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
    return sorted(fresh)


def bare_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the bare network, of a bare or a normalised model's."""
    prefix = "model."
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _head_prefix(body: nn.Module) -> str:
    head = body.get_classifier() if hasattr(body, "get_classifier") else None  # pyright: ignore[reportCallIssue]
    for name, module in body.named_modules():
        if module is head:
            return f"{name}."
    raise AssertionError(f"{type(body).__name__} has no classifier")


def _fit_position(source: dict[str, torch.Tensor], vit: VisionTransformer) -> dict[str, torch.Tensor]:
    position = source.get(POSITION)
    if position is None or vit.pos_embed is None or position.shape[1] == vit.pos_embed.shape[1]:
        return source
    if position.shape[2] != vit.pos_embed.shape[2]:
        return source
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    resampled = resample_abs_pos_embed(position, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=prefix)
    return {**source, POSITION: resampled}


SHOWN = 3
"""How many names of each kind a message holds."""


@dataclass(frozen=True)
class Misfit:
    """Names that one side lacks, and names whose shapes differ. False when there is none of either."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> Misfit:
    """How `found` differs from `expected` in names and shapes."""
    shapes = tuple(
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    )
    missing = tuple(name for name in expected if name not in found)
    return Misfit(missing, tuple(name for name in found if name not in expected), shapes)


def refuse(misfit: Misfit, *, where: str, remedy: str) -> UserError:
    """The error that names the first few differences of each kind; to be raised by the caller."""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in (
            ("missing", misfit.missing),
            ("unknown", misfit.unknown),
            ("of another shape", misfit.shapes),
        )
        if names
    ]
    return UserError(f"the weights do not fit the network: {'; '.join(parts)}", where=where, remedy=remedy)
