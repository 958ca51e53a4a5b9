"""The model card: everything but the weights that is needed to run a saved model, and to say what it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from components.errors import UserError
from components.models.families import Normalize, Stem

FORMAT = 1
"""Raised when the meaning of model.json changes."""


@dataclass(frozen=True)
class ModelCard:
    """How to build the network, what its outputs mean, and how its images are made.

    Attributes:
        name: family, as in `components.models.families`.
        stem: "patch" or "conv".
        num_classes: outputs.
        resolution: image side in pixels that the weights stand for.
        classes: class names in output order; empty when not known.
        normalize: mean and std of the normaliser inside the model; None for raw [0, 1] pixels.
        crop_ratio: evaluation images are resized to floor(resolution / crop_ratio), then centre-cropped; 1.0 for a
            plain resize.
        kwargs: further options of the network.
        source: where the weights come from, in words ("trained here", a file, a timm tag).
        details: anything else worth keeping, JSON-able.
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
                raise TypeError(f"{name} is {getattr(self, name)!r}, not of type {kind.__name__}")
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes and len(self.classes) != self.num_classes:
            raise UserError(
                f"{len(self.classes)} class names for {self.num_classes} outputs",
                where="classes",
                remedy="Name every output once, or none",
            )
        if self.normalize is not None:
            mean, std = self.normalize
            object.__setattr__(self, "normalize", (_floats(mean), _floats(std)))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` gives an equal card back."""
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.loads(json.dumps(document, allow_nan=False))

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str = "model.json") -> ModelCard:
        """The card of a JSON document.

        Raises:
            UserError: another format, unknown or missing fields, or values that make no card.
        """
        fields = {key: value for key, value in document.items() if key != "format"}
        if document.get("format") != FORMAT:
            raise UserError(
                "another format of model card",
                where=where,
                value=document.get("format"),
                remedy=f"This version reads format {FORMAT}; save the model again with it",
            )
        try:
            return cls(**fields)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(
                f"this is not a model card: {error}", where=where, remedy="Take a folder that save_model wrote"
            ) from error


def _floats(values: Any) -> tuple[float, float, float]:
    return cast(tuple[float, float, float], tuple(float(value) for value in values))
