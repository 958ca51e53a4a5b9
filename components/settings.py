"""Base of the settings classes: values read from environment variables, checked, with one line for a wrong one.

A field that has a variable is declared with `setting`. Its names, default, description and where it is set are written
there and nowhere else: the parser, the keys of the ConfigMap and the tables in the documents are derived from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from components.errors import UserError

SetIn = Literal["shell", "config map", "pod"]
"""Who sets a variable: a user in a shell, the ConfigMap of an installation, or Kubernetes itself (a pod's field)."""


@dataclass(frozen=True)
class Variable:
    """What the documents and manifests need to know about one setting.

    Attributes:
        field: name of the field in its class.
        names: environment variables; the first one that is set and not empty wins.
        description: one line for the tables.
        default: the default as the tables show it, in Markdown.
        set_in: who sets it.
    """

    field: str
    names: tuple[str, ...]
    description: str
    default: str
    set_in: SetIn


def setting(
    *names: str,
    description: str,
    default: Any = PydanticUndefined,
    default_text: str = "",
    set_in: SetIn = "shell",
    remedy: str = "",
    **field: Any,
) -> Any:
    """Declares a field that is read from environment variables.

    Args:
        names: variables; the first one that is set and not empty wins.
        description: one line for the tables.
        default: value if no variable is set; without it (and without `default_factory`) the setting is required.
        default_text: the default in words, for the tables; by default the value itself.
        set_in: who sets the variable.
        remedy: what to do about a missing or wrong value.
        field: more arguments of `pydantic.Field`, such as `ge`, `repr` or `default_factory`.
    """
    extra: dict[str, Any] = {"default_text": default_text, "set_in": set_in, "remedy": remedy}
    if "default_factory" not in field:
        field["default"] = default
    return Field(validation_alias=AliasChoices(*names), description=description, json_schema_extra=extra, **field)


class EnvironmentSettings(BaseSettings):
    """Frozen settings. The constructor takes fields by name and reads nothing; `from_environment` reads variables."""

    # Lists and objects are decoded by the validators below: their messages name the variable, the library's do not.
    model_config = SettingsConfigDict(frozen=True, case_sensitive=True, populate_by_name=True, enable_decoding=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keeps the constructor away from the environment."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **values: Any) -> Self:
        """The settings of this process.

        Args:
            environment: variables; by default those of this process. Empty values count as not set.
            values: fields by name that override the variables.

        Raises:
            UserError: a required variable is not set, or a value is wrong; names the variable.
        """
        env = os.environ if environment is None else environment
        known = {name for variable in cls.variables() if variable.field not in values for name in variable.names}
        source = EnvSettingsSource(cls)
        source.env_vars = {name: env[name] for name in known if env.get(name, "").strip()}
        try:
            return cls(**{**source(), **values})
        except ValidationError as error:
            raise cls._user_error(error.errors()[0], source.env_vars) from error

    @classmethod
    def variables(cls, *set_in: SetIn) -> list[Variable]:
        """The settings that have variables, in the order of the class; with `set_in` only those set there."""
        found = []
        for name, field in cls.model_fields.items():
            if isinstance(field.validation_alias, AliasChoices):
                extra = _extra(field)
                names = tuple(str(choice) for choice in field.validation_alias.choices)
                text = extra["default_text"] or _default_text(field)
                found.append(Variable(name, names, field.description or "", text, extra["set_in"]))
        return [variable for variable in found if not set_in or variable.set_in in set_in]

    @classmethod
    def _user_error(cls, fault: ErrorDetails, env: Mapping[str, str | None]) -> UserError:
        """The one line for the first fault that pydantic found."""
        location = fault["loc"][0]
        variable = next(v for v in cls.variables() if location in {v.field, *v.names})
        name = next((name for name in variable.names if name in env), variable.names[0])
        remedy = _extra(cls.model_fields[variable.field])["remedy"]
        if fault["type"] == "missing":
            return UserError("is not set", where=name, remedy=remedy or f"set it: {variable.description}")
        what, advice = _in_words(fault)
        return UserError(what, where=name, value=env.get(name), remedy=remedy or advice)


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict), "declare the field with `setting`"
    return field.json_schema_extra


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "none, required"
    value = field.get_default()
    return f"`{value}`" if value not in (None, "", (), {}) else "none"


def _in_words(fault: ErrorDetails) -> tuple[str, str]:
    """(what is wrong, what to do) of a fault, from the type of pydantic's error."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "int_parsing" | "float_parsing":
            return "is not a number", "write digits"
        case "greater_than_equal":
            return f"is less than {context['ge']}", f"give {context['ge']} or more"
        case "value_error":
            return str(context["error"]), "correct the value"
        case "dict_type" | "mapping_type" | "tuple_type" | "string_type":
            return "has the wrong shape", "correct the value"
        case _:
            return fault["msg"][0].lower() + fault["msg"][1:], "correct the value"


def _decode_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


JsonObject = Annotated[Mapping[str, str], BeforeValidator(_decode_json)]
"""A JSON object of texts, such as `{"gpu": "a100"}`."""
JsonObjects = Annotated[tuple[Mapping[str, Any], ...], BeforeValidator(_decode_json)]
"""A JSON list of objects, such as `[{"operator": "Exists"}]`."""
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
"""Comma-separated names."""
