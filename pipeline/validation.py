"""Turns pydantic's first complaint into one line with field, value and remedy."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from components.errors import UserError, nearest


def explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """The `UserError` that says what is wrong with the first offending field.

    Args:
        error: what validating `model` raised.
        where: dotted path of the model in the document; empty at the top.
    """
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    field = ".".join([*([where] if where else []), *(p for p in place if not p.startswith("function-"))])
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, UserError):
        return raised.within(where if raised.where else field)
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        remedy = f"the keys here are: {', '.join(sorted(known))}"
        return UserError(f"unknown key{nearest(place[-1], known)}", where=field, value=first["input"], remedy=remedy)
    if first["type"] == "missing":
        return UserError("this key is required", where=field, remedy=_describe(model, place) or "add it")
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    value = first["input"]
    if isinstance(value, (dict, BaseModel)):
        return UserError(what, where=field, remedy="change the value")
    return UserError(what, where=field, value=value, remedy=_describe(model, place) or "change the value")


def _model_at(model: type[BaseModel], place: list[str]) -> type[BaseModel] | None:
    """The nested model a location leads to; list indices and union members are passed over."""
    current: type[BaseModel] | None = model
    for part in place:
        if current is None:
            return None
        if part in current.model_fields:
            current = _nested(current.model_fields[part].annotation)
    return current


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_nested(inner) for inner in get_args(annotation))
    return next((inner for inner in found if inner is not None), None)


def _fields_at(model: type[BaseModel], place: list[str]) -> list[str]:
    at = _model_at(model, place)
    return [*at.model_fields] if at else []


def _describe(model: type[BaseModel], place: list[str]) -> str:
    """The field's own description, as the remedy."""
    names = [part for part in place if not part.isdigit()]
    for last in range(len(names), 0, -1):
        at = _model_at(model, names[: last - 1])
        if at and names[last - 1] in at.model_fields:
            text = at.model_fields[names[last - 1]].description
            return f"{names[last - 1]}: {text}" if text else ""
    return ""
