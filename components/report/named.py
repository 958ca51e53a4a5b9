"""A reused stage carries the names of the recipe that ran it first; what is shown has the names of the recipe at hand.

Names are no part of a fingerprint, so that a stage of one recipe may be reused under another name in the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_REFERENCES = ("model", "data", "init", "evaluation")
"""Fields of a stage that may hold another stage's name."""


def config_here(stage: str, config: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a stage with its references as the recipe writes them; as it is where that is not known.

    Args:
        recipe: a resolved recipe, `stages` by name; may be empty.
    """
    entry = (recipe.get("stages") or {}).get(stage) or {}
    return {**config, **{key: entry[key] for key in _REFERENCES if entry.get(key) is not None}}


def rows_here(stage: str, rows: Iterable[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an evaluation with `name`, the training stage of their model, as the recipe writes it."""
    entry = (recipe.get("stages") or {}).get(stage) or {}
    named = {"name": entry["model"]} if isinstance(entry.get("model"), str) else {}
    return [{**row, **named} for row in rows]
