"""Comparing two state dicts by name and shape, and saying in one line how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from components.errors import UserError

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
