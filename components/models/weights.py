"""Saved models: a folder with `weights.safetensors` and `model.json`, the model card.

The card holds everything but the weights that is needed to run the model. It is written last and contains the sha256 of
the weights, so an incomplete folder is never taken for a model, and damaged weights are refused. The weights are those
of the bare network; the constants of its normaliser are in the card.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from components.errors import UserError
from components.files import sha256_file, write_atomically
from components.models.build import build_model
from components.models.families import Normalize, Stem
from components.models.normalize import NormalizedModel, network
from components.models.transplant import compare, mismatch_error

WEIGHTS, CARD = "weights.safetensors", "model.json"

FORMAT = 1
"""Raised when fields of model.json change."""


@dataclass(frozen=True)
class ModelCard:
    """What `model.json` says: how to build the network, what its outputs mean, and how its images are prepared.

    Attributes:
        name: family, as in `components.models.families`.
        stem: "patch" or "conv".
        num_classes: outputs.
        resolution: image side in pixels that the weights belong to.
        classes: class names in output order; empty if unknown.
        normalize: mean and std of the normaliser inside the model; None for raw [0, 1] pixels.
        crop_ratio: evaluation images are resized to floor(resolution / crop_ratio), then the centre is cut out; 1.0 for
            a plain resize.
        kwargs: further options of the network.
        source: where the weights come from, in words ("trained here", a file, a timm tag).
        details: further information that can be written as JSON.
    """

    name: str
    stem: Stem
    num_classes: int
    resolution: int
    classes: tuple[str, ...] = ()
    normalize: Normalize | None = None
    crop_ratio: float = 0.875
    kwargs: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("name", str), ("stem", str), ("num_classes", int), ("resolution", int), ("kwargs", dict)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {getattr(self, name)!r}, which is not of type {kind.__name__}")
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes and len(self.classes) != self.num_classes:
            raise UserError(
                f"{len(self.classes)} class names for {self.num_classes} outputs",
                where="classes",
                remedy="name every output once, or none",
            )
        if self.normalize is not None:
            mean, std = self.normalize
            object.__setattr__(self, "normalize", (_floats(mean), _floats(std)))

    def to_json(self) -> dict[str, Any]:
        """Returns the card as a JSON document; `from_json` turns it back into an equal card."""
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.loads(json.dumps(document, allow_nan=False))

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str = "model.json") -> ModelCard:
        """Reads a card from a JSON document.

        Raises:
            UserError: another format, unknown or missing fields, or values that do not fit their field.
        """
        fields = {key: value for key, value in document.items() if key != "format"}
        if document.get("format") != FORMAT:
            raise UserError(
                "this model card has another format",
                where=where,
                value=document.get("format"),
                remedy=f"this version reads format {FORMAT}; save the model again with it",
            )
        try:
            return cls(**fields)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(
                f"this is not a model card: {error}", where=where, remedy="take a folder that save_model wrote"
            ) from error


def _floats(values: Any) -> tuple[float, float, float]:
    return cast(tuple[float, float, float], tuple(float(value) for value in values))


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Writes `model` to `folder`, replacing a model that is already there.

    Args:
        folder: created if it does not exist.
        model: built by `build_model` with the values on the card; bare or with its normaliser.
        card: describes the model.

    Raises:
        UserError: the network is not the one that the card describes, or the folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network(model).state_dict().items()}
    expected = network(build_from_card(card, device="meta")).state_dict()
    if mismatch := compare(expected, state):
        raise mismatch_error(mismatch, where=CARD, remedy="give the card that this model was built from")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder without a card is not a model, so a crash from here on leaves nothing that could be mistaken for one.
        (folder / CARD).unlink(missing_ok=True)
        write_atomically(folder / WEIGHTS, lambda path: save_file(state, path))
        document = {**card.to_json(), "weights": {"file": WEIGHTS, "sha256": sha256_file(folder / WEIGHTS)}}
        write_atomically(folder / CARD, json.dumps(document, indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the model could not be saved: {error}", where=str(folder), remedy="free some space or give another folder"
        ) from error


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Loads the model in `folder`, in eval mode on the CPU, and its card. Draws no random numbers.

    Raises:
        UserError: there is no model, a damaged file, or weights that do not fit the network on the card.
    """
    document = read_card_document(folder)
    weights = document.pop("weights", None)
    card = ModelCard.from_json(document, where=str(folder / CARD))
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{WEIGHTS} is missing", where=str(folder), remedy="take a folder that save_model wrote")
    if not isinstance(weights, dict) or weights.get("sha256") != sha256_file(path):
        raise UserError(
            "the weights are damaged: their sha256 is not the one in model.json",
            where=str(path),
            remedy="download the model again, or run the stage that made it",
        )
    return model_from_state(card, read_safetensors(path), where=str(path)), card


def read_card(folder: Path) -> ModelCard:
    """Reads the card alone, without opening the weights.

    Raises:
        UserError: there is no card, or it cannot be read.
    """
    document = read_card_document(folder)
    document.pop("weights", None)
    return ModelCard.from_json(document, where=str(folder / CARD))


def read_card_document(folder: Path) -> dict[str, Any]:
    """Reads model.json without interpreting it.

    Raises:
        UserError: it is missing, not JSON, or not an object.
    """
    path = folder / CARD
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CARD} cannot be read: {error}", where=str(folder), remedy="take a folder that save_model wrote"
        ) from error
    if not isinstance(document, dict):
        raise UserError(f"{CARD} is not an object", where=str(folder), remedy="take a folder that save_model wrote")
    return document


def model_from_state(card: ModelCard, state: Mapping[str, torch.Tensor], *, where: str) -> nn.Module:
    """Builds the card's model with exactly the tensors of `state` (names of the bare network), in eval mode on the CPU.

    Raises:
        UserError: names or shapes differ; the first few are named.
    """
    model = build_from_card(card, device="meta")
    expected = network(model).state_dict()
    if mismatch := compare(expected, state):
        raise mismatch_error(
            mismatch, where=where, remedy="give the name, stem and number of classes that it was made with"
        )
    network(model).load_state_dict({name: tensor.to("cpu") for name, tensor in state.items()}, assign=True)
    if isinstance(model, NormalizedModel):
        assert card.normalize is not None
        model = NormalizedModel(model.model, card.normalize)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def build_from_card(card: ModelCard, device: str = "cpu") -> nn.Module:
    """Builds the card's network, freshly initialised; on device "meta" it has shapes but no values.

    Raises:
        UserError: the card describes a network that does not exist.
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
    """Reads the tensors of a safetensors file.

    Raises:
        UserError: the file cannot be read as one.
    """
    try:
        # Copies, so that no tensor refers to the file afterwards: it may be replaced.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"this is not a complete safetensors file: {error}", where=str(path), remedy="download or make it again"
        ) from error
