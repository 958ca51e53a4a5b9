"""`--set KEY=VALUE`: single values of a recipe's document, given on the command line.

KEY is `stage.field`, `stages.stage.field`, or a field of the recipe itself; VALUE is YAML. Where a recipe has a matrix,
an override of one stage (`adversarial-conv.epochs=3`) comes after its expansion, and one of all stages of a template
(`adversarial-{stem}.epochs=3`) or of an axis (`matrix.stem=[conv]`) before it. One stage's own override wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from components.errors import UserError, nearest
from pipeline.matrix import FIELD, has_placeholder
from pipeline.recipe_file import parse_yaml


def before_expansion(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """The overrides that concern a template or an axis, and those that concern single stages, each in their order."""
    general, single = [], []
    for override in overrides:
        key = override.partition("=")[0]
        (general if has_placeholder(key) or key.split(".")[0] == FIELD else single).append(override)
    return general, single


def override(document: dict[str, Any], given: str, fields: Collection[str]) -> None:
    """Sets one value in the document.

    Args:
        given: KEY=VALUE.
        fields: the recipe's own fields, beside which everything is a stage.

    Raises:
        UserError: not KEY=VALUE, a VALUE that is no YAML, or no stage or field of that name.
    """
    key, equals, text = given.partition("=")
    if not equals or not key:
        remedy = "for example adversarial.lr=1e-3"
        raise UserError("an override is KEY=VALUE", where="--set", value=given, remedy=remedy)
    parts = key.split(".")
    if parts[0] not in fields and parts[0] not in {"stages", FIELD}:
        _check_stage(document, key, parts[0], fields)
        parts = ["stages", *parts]
    place = document
    for part in parts[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[parts[-1]] = _yaml(given, text)


def _check_stage(document: dict[str, Any], key: str, name: str, fields: Collection[str]) -> None:
    found = document.get("stages")
    stages = [str(stage) for stage in found] if isinstance(found, dict) else []
    if name not in stages:
        hint = nearest(name, [*stages, *fields])
        remedy = f"the stages are: {', '.join(stages)}"
        raise UserError(f"no stage or field of that name{hint}", where="--set", value=key, remedy=remedy)


def _yaml(given: str, text: str) -> Any:
    try:
        return parse_yaml(text, "--set")
    except UserError:
        remedy = "quote it, or write a list as [a, b] and a mapping as {a: b}, each key once"
        raise UserError("the value is not YAML", where="--set", value=given, remedy=remedy) from None
