"""Loads robust checkpoints published by others: the `.pt` files of Singh, Croce, Hein (NeurIPS 2023).

Their layout: names may start with `module.` (DistributedDataParallel) and `base_model.` (their training wrapper). If
the file holds `normalize.{mean,std}`, the network's names start with `model.`. The rest of a name is what this package
and timm use (`stem.stem.0.weight`, `patch_embed.proj.stem.0.weight`, `stages.0.blocks.0.conv_dw.weight`), except that
the isotropic ConvNeXt has the names of Meta's original code.

Whether a model expects normalised images is what its users get wrong most often. It is read from the file and compared
with what is known of the published files, and `choose_normalizer` compares it with a recipe. A file is read with
`weights_only=True`: no code in it is executed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import torch
from torch import nn

from components.errors import UserError
from components.files import sha256_file
from components.models.families import Normalize, Stem, find_family
from components.models.weights import ModelCard, model_from_state, read_safetensors

WRAPPERS = ("module.", "base_model.")
"""Prefixes that wrappers add to every name, outermost first."""

STATE_KEYS = ("state_dict_ema", "model_ema", "model_state_dict", "state_dict", "model")
"""Keys under which checkpoints keep a state dict. Of several the first in this order is taken: the average (EMA) is
what the authors evaluated. The released code saves `model_state_dict` and `state_dict_ema`, Meta saves `model`."""

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


class StoredState(NamedTuple):
    """The state dict of a file.

    Attributes:
        tensors: by name, as in the file.
        key: the key in the file that holds it; empty if the file is a flat state dict.
        keys: all keys that hold a state dict, in the order of `STATE_KEYS`.
    """

    tensors: dict[str, torch.Tensor]
    key: str = ""
    keys: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Which state dict was taken: `, state_dict_ema (of state_dict_ema, model_state_dict)`; empty if it is flat."""
        if not self.key:
            return ""
        return f", {self.key}" + (f" (of {', '.join(self.keys)})" if len(self.keys) > 1 else "")


def load_published(
    path: Path,
    *,
    name: str | None = None,
    stem: Stem | None = None,
    sha256: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ModelCard]:
    """Loads a published checkpoint as a model in eval mode on the CPU, for pixels in [0, 1], with its card.

    The card's `normalize` is the normaliser inside the file, None if the file holds none. `details` holds the file's
    sha256, `state` and `states` (which state dict was taken, and which the file holds), and `raw`: whether the file is
    known to be for raw pixels, because of its name or because it is in the layout that keeps a normaliser inside.

    Args:
        path: a `.pt` or `.safetensors` file.
        name, stem: the network; None if the file's name is one of `PUBLISHED`.
        sha256: the file's expected digest; not checked if None.
        kwargs: further options of the network.

    Raises:
        UserError: an unknown file without name and stem, a published file of another network, another digest, a file
            that is not plain weights, names or shapes that do not fit (the first few are named), or a normaliser that
            is unexpectedly there or missing.
    """
    known = _identify(path, name, stem)
    digest = _checked_digest(path, sha256)
    stored = read_state(path)
    state, normalize = split_normalizer(stored.tensors, where=str(path))
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
        kwargs=dict(kwargs or {}),
        source=f"published file {path.name}{stored.title}",
        details={
            "sha256": digest,
            "state": stored.key,
            "states": list(stored.keys),
            "raw": normalize is None and (known.normalized is False or _is_wrapped(stored.tensors)),
        },
    )
    return model_from_state(card, state, where=str(path)), card


def choose_normalizer(card: ModelCard, wanted: Normalize | None, *, where: str) -> Normalize | None:
    """Returns the normaliser of a network whose weights come from a file or a model folder.

    Args:
        card: of `load_published` or `load_model`.
        wanted: the recipe's normaliser; None: the one inside the file.
        where: the file, for the message.

    Raises:
        UserError: the recipe names another normaliser than the one inside, or names one although the model is known to
            be for raw pixels. Other files without a normaliser (clean weights of timm or Meta) take the recipe's.
    """
    if wanted is None or (card.normalize is None and not card.details.get("raw")):
        return wanted or card.normalize
    if card.normalize is not None and torch.allclose(torch.tensor(card.normalize), torch.tensor(wanted), rtol=1e-6):
        return card.normalize
    inside = f"holds the normaliser {_text(card.normalize)}" if card.normalize else "is for raw pixels in [0, 1]"
    raise UserError(
        f"the model in {where} {inside}, and the recipe names another one",
        where="model.normalize",
        value=_text(wanted),
        remedy="leave model.normalize out: the model's own normaliser is then used",
    )


def read_state(path: Path) -> StoredState:
    """Reads the tensors of a `.safetensors` file, or of a torch file: a flat state dict, or one under `STATE_KEYS`.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else than tensors.
    """
    if path.suffix == ".safetensors":
        return StoredState(read_safetensors(path))
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"this is not a readable file of plain weights: {first}",
            where=str(path),
            remedy="download it again; a file that needs more than plain tensors is not opened",
        ) from error
    if _is_state(document):
        return StoredState(dict(document))
    entries = document if isinstance(document, Mapping) else {}
    keys = tuple(key for key in STATE_KEYS if _is_state(entries.get(key)))
    if not keys:
        held = f"; it holds {', '.join(map(str, list(entries)[:5]))}" if entries else ""
        raise UserError(
            f"this file does not hold a state dict{held}",
            where=str(path),
            remedy=f"give a file of names and tensors alone, or one that has them under {', '.join(STATE_KEYS)}",
        )
    return StoredState(dict(entries[keys[0]]), keys[0], keys)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, torch.Tensor) for t in value.values())


def split_normalizer(
    state: Mapping[str, torch.Tensor], *, where: str
) -> tuple[dict[str, torch.Tensor], Normalize | None]:
    """Splits a state dict into the network's tensors, in fp32 under this package's names, and its normaliser or None.

    Raises:
        UserError: a normaliser without mean or std, or one beside names that do not start with `model.`.
    """
    while prefix := _common_wrapper(state):
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


def _common_wrapper(state: Mapping[str, torch.Tensor]) -> str:
    return next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), "")


def _is_wrapped(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is in the authors' layout, which has the normaliser, if there is one, beside the network."""
    return all("base_model." in name for name in state)


def _identify(path: Path, name: str | None, stem: Stem | None) -> PublishedFile:
    known = PUBLISHED.get(path.stem)
    if name is not None and stem is not None:
        wanted = PublishedFile(find_family(name).name, stem, normalized=None)
        if known is not None and (known.name, known.stem) != (wanted.name, wanted.stem):
            raise UserError(
                f"the published file of this name holds {known.name} with stem {known.stem}",
                where=str(path),
                value=f"{wanted.name} with stem {wanted.stem}",
                remedy="correct model.name and model.stem, or rename the file if it is another one",
            )
        return known or wanted
    if known is not None:
        return known
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


def _text(normalize: Normalize) -> str:
    return ", ".join("[" + ", ".join(f"{value:.6g}" for value in values) + "]" for values in normalize)


def _classes(state: Mapping[str, torch.Tensor]) -> int:
    heads = [state[name].shape[0] for name in ("head.fc.bias", "head.bias") if name in state]
    return heads[0] if heads else 1000


def _our_name(name: str) -> str:
    for pattern, replacement in META_NAMES:
        name = pattern.sub(replacement, name)
    return name
