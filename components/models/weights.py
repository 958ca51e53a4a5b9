"""Saving a model and opening it again: a folder of `weights.safetensors` and `model.json`.

`model.json` is written last and holds the sha256 of the weights, so that a torn save is no model and a damaged one is
refused. The weights are those of the bare network; the normaliser's constants are in the card.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from components.errors import UserError
from components.models.build import build_model
from components.models.card import ModelCard
from components.models.normalize import NormalizedModel, network
from components.models.transplant import compare, refuse

WEIGHTS, CARD = "weights.safetensors", "model.json"


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write `model` to `folder`, replacing a model that is already there.

    Args:
        folder: created where it does not exist.
        model: built by `build_model` with what `card` says; bare or with its normaliser.
        card: what the folder says about the weights.

    Raises:
        UserError: the network is not the one that the card describes, or the folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network(model).state_dict().items()}
    expected = network(build_from_card(card, device="meta")).state_dict()
    if misfit := compare(expected, state):
        raise refuse(misfit, where=CARD, remedy="Give the card that this model was built from")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without its card the folder is no model: from here on a crash leaves nothing that could be trusted.
        (folder / CARD).unlink(missing_ok=True)
        _write(folder / WEIGHTS, lambda path: save_file(state, path))
        document = {**card.to_json(), "weights": {"file": WEIGHTS, "sha256": sha256_file(folder / WEIGHTS)}}
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        _write(folder / CARD, lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the model could not be saved: {error}", where=str(folder), remedy="Make room or give another folder"
        ) from error


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """The model in `folder`, in eval mode on the CPU, and its card. Draws no random numbers.

    Raises:
        UserError: no model there, a damaged file, or weights that do not fit the network on the card.
    """
    document = read_card_document(folder)
    weights = document.pop("weights", None)
    card = ModelCard.from_json(document, where=str(folder / CARD))
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{WEIGHTS} is missing", where=str(folder), remedy="Take a folder that save_model wrote")
    if not isinstance(weights, dict) or weights.get("sha256") != sha256_file(path):
        raise UserError(
            "the weights are damaged: their sha256 is not the one in model.json",
            where=str(path),
            remedy="Fetch the model again, or run the stage that made it",
        )
    return model_with(card, read_safetensors(path), where=str(path)), card


def read_card(folder: Path) -> ModelCard:
    """The card alone, without opening the weights.

    Raises:
        UserError: no card there, or none that can be read.
    """
    document = read_card_document(folder)
    document.pop("weights", None)
    return ModelCard.from_json(document, where=str(folder / CARD))


def read_card_document(folder: Path) -> dict[str, Any]:
    """model.json as it is.

    Raises:
        UserError: missing, not JSON, or not an object.
    """
    path = folder / CARD
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no readable {CARD}: {error}", where=str(folder), remedy="Take a folder that save_model wrote"
        ) from error
    if not isinstance(document, dict):
        raise UserError(f"{CARD} is not an object", where=str(folder), remedy="Take a folder that save_model wrote")
    return document


def model_with(card: ModelCard, state: Mapping[str, torch.Tensor], *, where: str) -> nn.Module:
    """The card's model holding exactly `state` (names of the bare network), in eval mode on the CPU.

    Raises:
        UserError: names or shapes differ; the first few are named.
    """
    model = build_from_card(card, device="meta")
    expected = network(model).state_dict()
    if misfit := compare(expected, state):
        raise refuse(misfit, where=where, remedy="Give the name, stem and number of classes that it was made with")
    network(model).load_state_dict({name: tensor.to("cpu") for name, tensor in state.items()}, assign=True)
    if isinstance(model, NormalizedModel):
        assert card.normalize is not None
        model = NormalizedModel(model.model, card.normalize)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def build_from_card(card: ModelCard, device: str = "cpu") -> nn.Module:
    """The card's network, freshly initialised; on device "meta" it has shapes but no values.

    Raises:
        UserError: the card asks for a network that there is not.
    """
    with torch.device(device):
        return build_model(
            card.name,
            stem=card.stem,
            num_classes=card.num_classes,
            resolution=card.resolution,
            normalize=card.normalize,
            **card.kwargs,
        )


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the file cannot be read as one.
    """
    try:
        # Copies, so that nothing refers to the file once it has been read: it may be replaced.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"this is no whole safetensors file: {error}", where=str(path), remedy="Fetch or make the file again"
        ) from error


def sha256_file(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, write: Any) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
