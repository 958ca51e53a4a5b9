"""Configuration of the `promote` stage: the rules of the gate. Light to import: the pipeline reads it without torch."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from components.config_model import ConfigModel
from components.errors import UserError
from components.threats import ATTACKS, STANDARD, Norm, Radius

ANY = "any"
"""Value of `attack` that accepts every attack."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class PromoteConfig(ConfigModel):
    """Registers a model as `challenger`; it becomes `champion` only if its evaluation passes every rule below."""

    evaluation: str = Field(description="name of the evaluate stage whose results are judged")
    model: str = Field(description="name of the training stage whose model is registered")
    name: str = Field(default="robustrain", description="name in the model registry")
    norm: Norm | None = Field(default=None, description="norm of the judged result; none: the evaluation's first")
    eps: Radius | None = Field(
        default=None, gt=0, description="radius of the judged result; none: the first of that norm"
    )
    attack: str = Field(
        default=STANDARD.title, description="attack that must have measured it; any: a shorter attack is enough"
    )
    min_robust: float = Field(
        default=0.0, ge=0, le=1, description="least robust accuracy; the low end of the 95 % interval has to reach it"
    )
    min_clean: float = Field(default=0.0, ge=0, le=1, description="least clean accuracy")
    min_robust_gain: float = Field(
        default=0.0, ge=0, le=1, description="robust accuracy has to exceed the champion's by this"
    )
    max_clean_drop: float = Field(
        default=0.02, ge=0, le=1, description="clean accuracy may be below the champion's by at most this"
    )
    significant: bool = Field(
        default=False, description="the 95 % interval of the paired difference to the champion has to be above 0"
    )
    intended_use: str = Field(default="", description="for the model card, in words")

    @field_validator("attack")
    @classmethod
    def _known(cls, value: str) -> str:
        known = {ANY: ANY} | {word.lower(): one.title for one in ATTACKS.values() for word in (one.key, one.title)}
        if value.lower() not in known:
            choices = ", ".join(dict.fromkeys(known.values()))
            raise UserError("there is no such attack", where="attack", value=value, remedy=f"choose one of {choices}")
        return known[value.lower()]

    @field_validator("name")
    @classmethod
    def _registrable(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise UserError(
                "the registry takes letters, digits, dots, dashes and underscores",
                where="name",
                value=value,
                remedy="choose another name",
            )
        return value
