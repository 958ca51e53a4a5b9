"""Opening robust checkpoints published by others: the `.pt` files of Singh, Croce, Hein (NeurIPS 2023).

Their layout: names may start with `module.` (DistributedDataParallel) and `base_model.` (their training wrapper). Where
the file holds `normalize.{mean,std}`, the network's names follow `model.`. What comes after is what this package and
timm use (`stem.stem.0.weight`, `patch_embed.proj.stem.0.weight`, `stages.0.blocks.0.conv_dw.weight`), except that the
isotropic ConvNeXt has the names of Meta's original code.

Whether a file expects normalised images is the fact that its users get wrong most often. It is read from the file, and
checked against what is known of the published ones. A file is read with `weights_only=True`: nothing in it is executed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import torch
from torch import nn

from components.errors import UserError
from components.models.card import ModelCard
from components.models.families import Normalize, Stem, find_family
from components.models.weights import model_with, read_safetensors, sha256_file

WRAPPERS = ("module.", "base_model.")
"""Prefixes that wrappers put before every name, outermost first."""

META_NAMES = (
    (re.compile(r"^(blocks\.\d+)\.dwconv\."), r"\1.conv_dw."),
    (re.compile(r"^(blocks\.\d+)\.pwconv([12])\."), r"\1.mlp.fc\2."),
)
"""Meta's isotropic ConvNeXt -> ours."""


@dataclass(frozen=True)
class Published:
    """What is known of a published file: its network, and whether it holds a normaliser (None: not known)."""

    name: str
    stem: Stem
    normalized: bool | None


PUBLISHED: dict[str, Published] = {
    "convnext_tiny_cvst_robust": Published("convnext_tiny", "conv", normalized=False),
    "convnext_s_cvst_robust": Published("convnext_small", "conv", normalized=False),
    "convnext_b_cvst_robust": Published("convnext_base", "conv", normalized=False),
    "vit_b_cvst_robust": Published("vit_base", "conv", normalized=False),
    "vit_s_cvst_robust": Published("vit_small", "conv", normalized=True),
    "convnext_iso_cvst_robust": Published("convnext_iso", "conv", normalized=True),
    "weights_convnext_t": Published("convnext_tiny", "patch", normalized=None),
    "weights_convnext_base": Published("convnext_base", "patch", normalized=None),
    "weights_vit_s": Published("vit_small", "patch", normalized=None),
    "weights_vit_b_50_ep": Published("vit_base", "patch", normalized=None),
}
"""Published files by name without suffix. ConvNeXt-L-CvSt is raw too, but its file name is not known here."""


def load_published(
    path: Path, *, name: str | None = None, stem: Stem | None = None, sha256: str | None = None
) -> tuple[nn.Module, ModelCard]:
    """A published checkpoint as a model in eval mode on the CPU, taking pixels in [0, 1], with its card.

    Args:
        path: a `.pt` or `.safetensors` file.
        name, stem: the network; None where the file's name is one of `PUBLISHED`.
        sha256: the file's digest, checked when given.

    Raises:
        UserError: unknown file without name and stem, another digest, a file that is not plain weights, names or
            shapes that do not fit (the first few are named), or a normaliser where none is known to be, or none where
            one is.
    """
    known = _known(path, name, stem)
    digest = _digest(path, sha256)
    state, normalize = split(read_state(path), where=str(path))
    if known.normalized is not None and known.normalized != (normalize is not None):
        raise UserError(
            f"the published file of this name holds {'a' if known.normalized else 'no'} normaliser, this one does"
            + (" not" if known.normalized else ""),
            where=str(path),
            remedy="Rename the file, and give name and stem, if it is another one",
        )
    card = ModelCard(
        name=known.name,
        stem=known.stem,
        num_classes=_classes(state),
        resolution=find_family(known.name).resolution,
        normalize=normalize,
        source=f"published file {path.name}",
        details={"sha256": digest},
    )
    return model_with(card, state, where=str(path)), card


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file or of a torch file holding a flat state dict, alone or as "state_dict".

    Raises:
        UserError: no such file, damaged, or holding anything but tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"this is no readable file of plain weights: {first}",
            where=str(path),
            remedy="Fetch it again; a file that needs more than plain tensors is not opened",
        ) from error
    state = document.get("state_dict", document) if isinstance(document, Mapping) else None
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(
            "this file does not hold a state dict", where=str(path), remedy="Give a file of names and tensors alone"
        )
    return dict(state)


def split(state: Mapping[str, torch.Tensor], *, where: str) -> tuple[dict[str, torch.Tensor], Normalize | None]:
    """The network's own tensors under this package's names in fp32, and the normaliser that came with them.

    Raises:
        UserError: a normaliser of which half is missing, or a network that does not follow `model.` beside one.
    """
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    constants = {name: tensor for name, tensor in state.items() if name.startswith("normalize.")}
    body = {name: tensor for name, tensor in state.items() if name not in constants}
    normalize = None
    if constants:
        if set(constants) != {"normalize.mean", "normalize.std"} or not all(n.startswith("model.") for n in body):
            raise UserError(
                f"a normaliser ({', '.join(sorted(constants))}) in a layout that is not known",
                where=where,
                remedy="Give a file with normalize.mean, normalize.std and the network under model.",
            )
        body = {name.removeprefix("model."): tensor for name, tensor in body.items()}
        normalize = _constants(constants)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in body.items()}
    return {_our_name(name): tensor for name, tensor in floats.items()}, normalize


def _known(path: Path, name: str | None, stem: Stem | None) -> Published:
    if name is not None and stem is not None:
        return Published(find_family(name).name, stem, normalized=None)
    if path.stem in PUBLISHED:
        return PUBLISHED[path.stem]
    raise UserError(
        "this file's network is not known",
        where=str(path),
        remedy=f"Give name and stem, or one of the published files ({', '.join(PUBLISHED)})",
    )


def _digest(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise UserError("no such file", where=str(path), remedy="Give the path of a checkpoint")
    digest = sha256_file(path)
    if expected is not None and digest != expected:
        raise UserError(
            f"the file's sha256 is not {expected}", where=str(path), value=digest, remedy="Fetch the file again"
        )
    return digest


def _constants(constants: Mapping[str, torch.Tensor]) -> Normalize:
    # Whatever shape they were stored in, (3,) or (1, 3, 1, 1); through float32 they come back bit for bit.
    return cast(Normalize, tuple(tuple(constants[f"normalize.{k}"].flatten().tolist()) for k in ("mean", "std")))


def _classes(state: Mapping[str, torch.Tensor]) -> int:
    heads = [state[name].shape[0] for name in ("head.fc.bias", "head.bias") if name in state]
    return heads[0] if heads else 1000


def _our_name(name: str) -> str:
    for pattern, replacement in META_NAMES:
        name = pattern.sub(replacement, name)
    return name
