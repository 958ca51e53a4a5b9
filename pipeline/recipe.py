"""The recipe: from YAML to validated stages in an order in which they can run.

A recipe names its stages. Each has a kind from the stage table (the first word of its name, unless `kind` names one)
and the configuration of that kind. `extends` takes another recipe as the base: later values win, and a stage set to
null is left out. A `matrix` lets stages fan out over its axes (`pipeline.matrix`), and `--set a.b=value` overrides
single values (`pipeline.recipe_loading`). Every mistake is one `UserError` that names the field.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from components.config_model import ConfigModel
from components.errors import UserError, nearest
from components.report.config import ReportConfig
from pipeline.citations import check_sources
from pipeline.matrix import expand
from pipeline.recipe_loading import before_expansion, override, read_document
from pipeline.stages import NAME_RULE, STAGE_NAME, STAGES, StageKind

MOST_NAME_CHARACTERS = 117
"""A compiled pipeline is named `robustrain-<name>`, and KFP 2.17 takes 128 characters."""

FOLDER = Path(__file__).parent / "recipes"


class RecipeHead(ConfigModel):
    """The fields of a recipe other than its stages."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=MOST_NAME_CHARACTERS,
        description="short name, as in `robustrain run NAME`: lower-case letters, digits and hyphens",
    )
    summary: str = Field("", description="one line for `robustrain recipes`")
    seed: int = Field(0, ge=0, lt=2**31, description="decides all random numbers of the run")
    match_released_code: bool = Field(
        False, description="`match_released_code` of every training stage that does not set it: do as the released code"
    )
    sources: dict[str, str] = Field(
        {}, description="stages and field -> where the value comes from, for `recipes --show` (`pipeline.citations`)"
    )


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        kind: its row in the stage table.
        config: its validated configuration.
        parents: role -> name of the stage that fills it.
    """

    name: str
    kind: StageKind
    config: BaseModel
    parents: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. In `stages`, every stage comes after its parents."""

    head: RecipeHead
    stages: dict[str, Stage]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.head.name

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe with all values written out, to be shown and recorded."""
        stages = {s.name: {"kind": s.kind.name, **s.config.model_dump(mode="json")} for s in self.stages.values()}
        return {**self.head.model_dump(), "stages": stages}


def names() -> dict[str, Path]:
    """Returns the recipes that come with the project: name -> file."""
    return {path.stem: path for path in sorted(FOLDER.rglob("*.yaml")) if not path.stem.startswith("_")}


def load(recipe: str, overrides: Iterable[str] = ()) -> Recipe:
    """Returns the recipe with this name or path, with `--set` overrides applied.

    Raises:
        UserError: unknown recipe, key, stage or value; a stage needs one that is missing; stages need each other.
    """
    return build(document_of(recipe, overrides))


def document_of(recipe: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the document of a recipe with `extends`, overrides and matrix applied, not validated.

    Raises:
        UserError: unknown recipe, a file that cannot be read, or a wrong matrix or override.
    """
    document = read_document(_find(recipe), _find)
    general, single = before_expansion(overrides)
    for given in general:
        override(document, given, RecipeHead.model_fields)
    document = expand(document)
    for given in single:
        override(document, given, RecipeHead.model_fields)
    return document


def build(document: Mapping[str, Any]) -> Recipe:
    """Validates a document without `extends`; a `matrix` is expanded first.

    Raises:
        UserError: as `load`.
    """
    document = expand(document)
    stages = document.pop("stages", None) or {}
    if not isinstance(stages, Mapping) or not stages:
        raise UserError("a recipe needs stages", where="stages", value=stages, remedy="list at least one stage")
    head = _validated(RecipeHead, document, "")
    if not any(entry is not None for entry in stages.values()):
        raise UserError("every stage is set to null, which leaves it out", where="stages", remedy="keep at least one")
    entries = {name: _stage(name, entry, head) for name, entry in stages.items() if entry is not None}
    known = {name: (stage.kind.name, stage.kind.config) for name, stage in entries.items()}
    check_sources(head.sources, known, (str(name) for name in stages if name not in entries), RecipeHead.model_fields)
    linked = {name: _linked(stage, entries) for name, stage in entries.items()}
    return Recipe(head, _ordered(linked))


def _find(recipe: str) -> Path:
    known = names()
    if recipe in known:
        return known[recipe]
    path = Path(os.path.expanduser(recipe))  # unlike Path.expanduser, leaves an unknown `~user` as it is
    if path.suffix in {".yaml", ".yml"} or "/" in recipe:
        if path.is_file():
            return path
        raise UserError("there is no such recipe file", where=recipe, remedy="check the path")
    hint = nearest(recipe, known)
    raise UserError(
        f"unknown recipe{hint}", value=recipe, remedy="`robustrain recipes` lists them; a path is possible too"
    )


def _stage(name: Any, entry: Any, head: RecipeHead) -> Stage:
    where = f"stages.{name}"
    if not isinstance(name, str) or not STAGE_NAME.fullmatch(name):
        raise UserError(NAME_RULE, where=where, value=name, remedy="rename the stage")
    if not isinstance(entry, Mapping):
        raise UserError(
            "a stage is a mapping of its fields", where=where, value=entry, remedy="write `kind: ...` below it"
        )
    fields = dict(entry)
    kind = fields.pop("kind", name.split("-")[0])
    if not isinstance(kind, str) or kind not in STAGES:
        hint = nearest(str(kind), STAGES)
        raise UserError(
            f"unknown kind of stage{hint}", where=f"{where}.kind", value=kind, remedy=f"one of {', '.join(STAGES)}"
        )
    row = STAGES[kind]
    if head.match_released_code and row.trains:
        fields.setdefault("match_released_code", True)
    return Stage(name, row, _validated(row.config, fields, where), {})


def _validated(model: type[BaseModel], fields: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise explain(error, model, where) from None


def _linked(stage: Stage, entries: Mapping[str, Stage]) -> Stage:
    """Returns the stage with its parents: those its kind needs, the data of its model, or all stages for a report."""
    if isinstance(stage.config, ReportConfig):
        _check_experiment(stage.name, stage.config, entries)
    if stage.kind.covers_all:
        before = [other for other in entries.values() if other.kind.reported]
        return Stage(stage.name, stage.kind, stage.config, {other.name: other.name for other in before})
    parents = {}
    for role, rule in stage.kind.roles.items():
        value = getattr(stage.config, role, None)
        if value is None and role == "data" and "model" in parents:
            value = getattr(entries[parents["model"]].config, "data", None)
        if rule.names_stage(value):
            parents[role] = _checked(stage, role, str(value), entries)
    return Stage(stage.name, stage.kind, stage.config, parents)


def _check_experiment(name: str, config: ReportConfig, entries: Mapping[str, Stage]) -> None:
    known = [other.name for other in entries.values() if other.kind.measures]
    for field, value in (config.experiment.stages if config.experiment else {}).items():
        if value not in known:
            what = f"an experiment compares evaluations, and there is none of that name{nearest(value, known)}"
            remedy = f"name one of: {', '.join(known) or '(the recipe has none)'}"
            raise UserError(what, where=f"stages.{name}.experiment.{field}", value=value, remedy=remedy)


def _checked(stage: Stage, role: str, value: str, entries: Mapping[str, Stage]) -> str:
    rule, where = stage.kind.roles[role], f"stages.{stage.name}.{role}"
    fitting = [name for name, other in entries.items() if other.kind.makes == rule.makes and name != stage.name]
    if value not in entries:
        hint = nearest(value, fitting)
        remedy = f"add that stage or name one of: {', '.join(fitting) or '(the recipe has none of the right kind)'}"
        raise UserError(f"this stage needs one that is missing{hint}", where=where, value=value, remedy=remedy)
    if value == stage.name:
        remedy = f"name one of: {', '.join(fitting) or '(the recipe has none of the right kind)'}"
        raise UserError("a stage cannot need itself", where=where, value=value, remedy=remedy)
    if value not in fitting:
        kinds = ", ".join(rule.kinds)
        raise UserError(
            f"needs another kind of stage than {entries[value].kind.name}",
            where=where,
            value=value,
            remedy=f"name a stage of kind {kinds}",
        )
    return value


def _ordered(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Returns the stages with parents first, otherwise in the order of the recipe."""
    done: dict[str, Stage] = {}
    left = dict(stages)
    while left:
        ready = next((s for s in left.values() if all(p in done for p in s.parents.values())), None)
        if ready is None:
            circle = ", ".join(left)
            raise UserError("these stages need each other in a circle", where="stages", value=circle, remedy="break it")
        done[ready.name] = left.pop(ready.name)
    return done


def explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """Returns a `UserError` for the first wrong field, with its path, its value and a remedy.

    Args:
        error: raised by validating `model`.
        where: dotted path of the model in the document; empty at the top.
    """
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    field = ".".join([*([where] if where else []), *(p for p in location if not p.startswith("function-"))])
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, UserError):
        return raised.within(where if raised.where else field)
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        remedy = f"the keys here are: {', '.join(sorted(known))}"
        return UserError(f"unknown key{nearest(location[-1], known)}", where=field, value=first["input"], remedy=remedy)
    if first["type"] == "missing":
        return UserError("this key is required", where=field, remedy=_describe(model, location) or "add it")
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    value = first["input"]
    if isinstance(value, (dict, BaseModel)):
        return UserError(what, where=field, remedy="change the value")
    return UserError(what, where=field, value=value, remedy=_describe(model, location) or "change the value")


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """Returns the nested model at a location; list indices and union members are skipped."""
    current: type[BaseModel] | None = model
    for part in location:
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


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    at = _model_at(model, location)
    return [*at.model_fields] if at else []


def _describe(model: type[BaseModel], location: list[str]) -> str:
    """Returns the field's description, which serves as the remedy."""
    names = [part for part in location if not part.isdigit()]
    for last in range(len(names), 0, -1):
        at = _model_at(model, names[: last - 1])
        if at and names[last - 1] in at.model_fields:
            text = at.model_fields[names[last - 1]].description
            return f"{names[last - 1]}: {text}" if text else ""
    return ""
