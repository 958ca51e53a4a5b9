"""Loads robust checkpoints published by others: the `.pt` files of Singh, Croce, Hein (NeurIPS 2023).

Their layout: names may start with `module.` (DistributedDataParallel) and `base_model.` (their training wrapper). If
the file holds `normalize.{mean,std}`, the network's names start with `model.`. The rest of a name is what this package
and timm use (`stem.stem.0.weight`, `patch_embed.proj.stem.0.weight`, `stages.0.blocks.0.conv_dw.weight`), except that
the isotropic ConvNeXt has the names of Meta's original code.

Whether a model expects normalised images is what its users get wrong most often. It is read from the file and compared
with what is known of the published files. A file is read with `weights_only=True`: no code in it is executed.
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
from components.files import sha256_file
from components.models.families import Normalize, Stem, find_family
from components.models.weights import ModelCard, model_from_state, read_safetensors

WRAPPERS = ("module.", "base_model.")
"""Prefixes that wrappers add to every name, outermost first."""

META_NAMES = (
    (re.compile(r"^(blocks\.\d+)\.dwconv\."), r"\1.conv_dw."),
    (re.compile(r"^(blocks\.\d+)\.pwconv([12])\."), r"\1.mlp.fc\2."),
)
"""(pattern of a name in Meta's isotropic ConvNeXt, name in ours)."""


@dataclass(frozen=True)
class PublishedFile:
    """The network in a published file, and whether the file holds a normaliser (None: unknown)."""

    name: str
    stem: Stem
    normalized: bool | None


PUBLISHED: dict[str, PublishedFile] = {
    "convnext_tiny_cvst_robust": PublishedFile("convnext_tiny", "conv", normalized=False),
    "convnext_s_cvst_robust": PublishedFile("convnext_small", "conv", normalized=False),
    "convnext_b_cvst_robust": PublishedFile("convnext_base", "conv", normalized=False),
    "vit_b_cvst_robust": PublishedFile("vit_base", "conv", normalized=False),
    "vit_s_cvst_robust": PublishedFile("vit_small", "conv", normalized=True),
    "convnext_iso_cvst_robust": PublishedFile("convnext_iso", "conv", normalized=True),
    "weights_convnext_t": PublishedFile("convnext_tiny", "patch", normalized=None),
    "weights_convnext_base": PublishedFile("convnext_base", "patch", normalized=None),
    "weights_vit_s": PublishedFile("vit_small", "patch", normalized=None),
    "weights_vit_b_50_ep": PublishedFile("vit_base", "patch", normalized=None),
}
"""Published files by name without suffix. ConvNeXt-L-CvSt has no normaliser either; its file name is unknown."""


def load_published(
    path: Path, *, name: str | None = None, stem: Stem | None = None, sha256: str | None = None
) -> tuple[nn.Module, ModelCard]:
    """Loads a published checkpoint as a model in eval mode on the CPU, for pixels in [0, 1], with its card.

    Args:
        path: a `.pt` or `.safetensors` file.
        name, stem: the network; None if the file's name is one of `PUBLISHED`.
        sha256: the file's expected digest; not checked if None.

    Raises:
        UserError: an unknown file without name and stem, another digest, a file that is not plain weights, names or
            shapes that do not fit (the first few are named), or a normaliser that is unexpectedly there or missing.
    """
    known = _identify(path, name, stem)
    digest = _checked_digest(path, sha256)
    state, normalize = split_normalizer(read_state(path), where=str(path))
    if known.normalized is not None and known.normalized != (normalize is not None):
        raise UserError(
            f"the published file of this name holds {'a' if known.normalized else 'no'} normaliser, this one does"
            + (" not" if known.normalized else ""),
            where=str(path),
            remedy="if it is another file, rename it and give name and stem",
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
    return model_from_state(card, state, where=str(path)), card


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a `.safetensors` file, or of a torch file with a flat state dict, alone or as "state_dict".

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else than tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"this is not a readable file of plain weights: {first}",
            where=str(path),
            remedy="download it again; a file that needs more than plain tensors is not opened",
        ) from error
    state = document.get("state_dict", document) if isinstance(document, Mapping) else None
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(
            "this file does not hold a state dict", where=str(path), remedy="give a file of names and tensors alone"
        )
    return dict(state)


def split_normalizer(
    state: Mapping[str, torch.Tensor], *, where: str
) -> tuple[dict[str, torch.Tensor], Normalize | None]:
    """Splits a state dict into the network's tensors, in fp32 under this package's names, and its normaliser or None.

    Raises:
        UserError: a normaliser without mean or std, or one beside names that do not start with `model.`.
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
                f"a normaliser ({', '.join(sorted(constants))}) in an unknown layout",
                where=where,
                remedy="give a file with normalize.mean, normalize.std and the network under model.",
            )
        body = {name.removeprefix("model."): tensor for name, tensor in body.items()}
        normalize = _constants(constants)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in body.items()}
    return {_our_name(name): tensor for name, tensor in floats.items()}, normalize


def _identify(path: Path, name: str | None, stem: Stem | None) -> PublishedFile:
    if name is not None and stem is not None:
        return PublishedFile(find_family(name).name, stem, normalized=None)
    if path.stem in PUBLISHED:
        return PUBLISHED[path.stem]
    raise UserError(
        "the network in this file is unknown",
        where=str(path),
        remedy=f"give name and stem, or one of the published files ({', '.join(PUBLISHED)})",
    )


def _checked_digest(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), remedy="give the path of a checkpoint")
    digest = sha256_file(path)
    if expected is not None and digest != expected:
        raise UserError(
            f"the file's sha256 is not {expected}", where=str(path), value=digest, remedy="download the file again"
        )
    return digest


def _constants(constants: Mapping[str, torch.Tensor]) -> Normalize:
    # Stored with shape (3,) or (1, 3, 1, 1); float32 values keep all their bits as Python floats.
    return cast(Normalize, tuple(tuple(constants[f"normalize.{k}"].flatten().tolist()) for k in ("mean", "std")))


def _classes(state: Mapping[str, torch.Tensor]) -> int:
    heads = [state[name].shape[0] for name in ("head.fc.bias", "head.bias") if name in state]
    return heads[0] if heads else 1000


def _our_name(name: str) -> str:
    for pattern, replacement in META_NAMES:
        name = pattern.sub(replacement, name)
    return name
