"""Moves weights from one stage's network into the next one's, whose stem, head or resolution may differ.

Two state dicts are compared by name and shape; differences that are not allowed are reported in one line.
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

POSITION = "pos_embed"


def transplant(source_state: Mapping[str, torch.Tensor], target_model: nn.Module) -> list[str]:
    """Copies every weight that fits into `target_model`, and returns the names of those that keep their initial values.

    Only two parts may keep their initial values, each only completely: the stem if its layout differs, and the
    classifier if the number of classes differs. Position embeddings of another resolution are resampled.

    Args:
        source_state: state dict of a network of the same family; its names may start with the `model.` of a normalised
            model.
        target_model: a freshly built network, bare or normalised.

    Returns:
        Sorted names, in the bare network's state dict, of the tensors that keep their initial values.

    Raises:
        UserError: the networks differ otherwise: another family, depth or width.
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
    mismatch = compare({name: tensor for name, tensor in target.items() if name not in fresh}, source)
    if mismatch:
        raise mismatch_error(mismatch, where="init", remedy="start from a stage that trained the same network")
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
    return sorted(fresh)


def bare_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the state dict of the bare network, given that of a bare or a normalised model."""
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


SHOWN_NAMES = 3
"""Names of each kind in an error message."""


@dataclass(frozen=True)
class Mismatch:
    """Differences between two state dicts: names that one of them lacks, and names whose shapes differ.

    It is false if there are no differences.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> Mismatch:
    """Compares the names and shapes of two state dicts."""
    shapes = tuple(
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    )
    missing = tuple(name for name in expected if name not in found)
    return Mismatch(missing, tuple(name for name in found if name not in expected), shapes)


def mismatch_error(mismatch: Mismatch, *, where: str, remedy: str) -> UserError:
    """Makes the error that names the first few differences of each kind, for the caller to raise."""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN_NAMES])}{', ...' if len(names) > SHOWN_NAMES else ''})"
        for kind, names in (
            ("missing", mismatch.missing),
            ("unknown", mismatch.unknown),
            ("of another shape", mismatch.shapes),
        )
        if names
    ]
    return UserError(f"the weights do not fit the network: {'; '.join(parts)}", where=where, remedy=remedy)
