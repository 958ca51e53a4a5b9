"""The base of every configuration that a person writes: frozen, no unknown fields, no lax numbers."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from components.errors import UserError


class ConfigModel(BaseModel):
    """Frozen; refuses unknown fields, NaN, infinities, and booleans or texts where a number belongs.

    pydantic's own rules would read `true` and "1" as 1. A text passes where the field's type reads it itself, such as a
    radius of `4/255`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        types = _leaves(field.annotation) | {type(one) for one in field.metadata}
        if types & {int, float}:
            _refuse_lax(value, takes_bool=bool in types, takes_text=bool(types & {str, BeforeValidator}))
        return value


def _leaves(annotation: Any) -> set[Any]:
    """Returns the types inside an annotation; for a `Literal` the types of its values, for any model `str` and `bool`.

    A model validates its own fields, so whatever it is given passes here.
    """
    if isinstance(annotation, BeforeValidator):
        return {BeforeValidator}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {str, bool}
    inner = get_args(annotation)
    if inner:
        return set().union(*(_leaves(one) for one in inner))
    return {annotation} if isinstance(annotation, type) else {str, bool} if annotation is Any else {type(annotation)}


def _refuse_lax(value: Any, *, takes_bool: bool, takes_text: bool) -> None:
    if isinstance(value, (list, tuple)):
        for one in value:
            _refuse_lax(one, takes_bool=takes_bool, takes_text=takes_text)
    elif isinstance(value, dict):
        for one in value.values():
            _refuse_lax(one, takes_bool=takes_bool, takes_text=takes_text)
    elif isinstance(value, bool) and not takes_bool:
        raise UserError("this is not a number", value=str(value).lower(), remedy="write a number")
    elif isinstance(value, str) and not takes_text:
        raise UserError("this is a text, not a number", value=value, remedy="write a number, without quotes")
