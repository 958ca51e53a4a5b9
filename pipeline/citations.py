"""Where a recipe's numbers come from: the keys of its `sources`, and which values each of them speaks for.

A key is `STAGES.FIELDS`. STAGES are names or kinds of stages, `training` (every kind that trains) or `all`; FIELDS are
fields or parts of them (`attack.eps`, `threats.0.eps`). Both may be lists with commas: `convstem, radius.lr, betas`.
A source speaks for a value and all below it. Without FIELDS it speaks for whole stages, `all` alone for the recipe;
a field of the recipe itself (`seed`) stands alone too. The longest way down to a value wins; among equal ones a name
goes before a kind, a kind before `training`, that before `all`.

A resolved recipe as YAML in which every value that has a source says it beside it.

A source that speaks for more than one value stands beside their heading: the field, the stage, or `stages:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from components.errors import UserError, nearest
from pipeline.stages import STAGES, TRAINING

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

EVERY = "all"
"""Stands for every stage, and alone for the whole recipe."""
TRAINS = "training"
"""Stands for every stage that trains."""


class Sources:
    """The sources of one recipe, by whom they speak for and which field."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._texts = {place: text for key, text in written.items() for place in _places(key)}

    def at(self, name: str, kind: str, path: str) -> str:
        """What stands beside exactly this field of a stage, or beside the stage where `path` is empty; else nothing."""
        found = (self._texts.get((word, path)) for word in _words(name, kind) if path or word != EVERY)
        return next((text for text in found if text), "")

    def of_recipe(self, field: str = EVERY) -> str:
        """What stands beside a field of the recipe itself, or by default beside all its stages; else nothing."""
        return self._texts.get((field, ""), "")


def check_sources(
    written: Mapping[str, str],
    stages: Mapping[str, tuple[str, type[BaseModel]]],
    left_out: Iterable[str],
    fields: Iterable[str],
) -> None:
    """Every key speaks for something, or for what the recipe leaves out of the one that it extends.

    Args:
        stages: name -> kind and configuration of each stage.
        left_out: names of the stages that are set to null.
        fields: the recipe's own.

    Raises:
        UserError: a key that matches no stage or no field.
    """
    gone = {word for name in left_out for word in _words(name, name.split("-")[0])}
    here = {word for name, (kind, _) in stages.items() for word in _words(name, kind)}
    for key in written:
        for word, path in _places(key):
            if word in here:
                models = [model for name, (kind, model) in stages.items() if word in _words(name, kind)]
                if not any(_has(model, path.split(".") if path else []) for model in models):
                    _refuse(key, path, sorted({field for model in models for field in model.model_fields}), "field")
            elif not (word in gone or (word in fields and not path)):
                _refuse(key, word, sorted({*here, *fields}), "stage, kind or field")


def _refuse(key: str, part: str, known: list[str], what: str) -> None:
    remedy = f"mend or remove the key; known here are: {', '.join(known)}"
    raise UserError(
        f"this source speaks for nothing: no {what} {part!r}{nearest(part, known)}",
        where="sources",
        value=key,
        remedy=remedy,
    )


def _words(name: str, kind: str) -> list[str]:
    """What a key may call a stage, the most special first."""
    return [name, kind, *([TRAINS] if kind in TRAINING else []), *([EVERY] if kind in STAGES else [])]


def _places(key: str) -> list[tuple[str, str]]:
    """(word, path) of each stage and field that a key lists."""
    words, _, paths = key.partition(".")
    return [(word.strip(), path.strip()) for word in words.split(",") for path in paths.split(",")]


def _has(annotation: Any, parts: list[str]) -> bool:
    """Whether a configuration can hold something at this place."""
    if not parts or annotation is Any:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(parts[0])
        return field is not None and _has(field.annotation, parts[1:])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return _has(inner[1], parts[1:])
    if origin in (tuple, list):
        return parts[0].isdigit() and any(_has(one, parts[1:]) for one in inner)
    return any(_has(one, parts) for one in inner)


# MERGED

Note = Callable[[str], str]
"""Dotted path of a value -> its source, or nothing."""

_WIDTH = 10**6
"""Characters of a line: a value is never broken over several, which would part it from its source."""


def annotated(recipe: Recipe) -> str:
    """The recipe's stages with all values; `# ...` says where a number comes from, or that it is not published."""
    resolved, sources = recipe.resolved(), Sources(recipe.head.sources)
    stages = resolved.pop("stages")
    del resolved["sources"]
    lines = [*_lines(resolved, "", 0, sources.of_recipe), f"stages:{_comment(sources.of_recipe())}"]
    for name, fields in stages.items():
        note = _note_of(sources, name, fields["kind"])
        lines += [f"  {name}:{_comment(note(''))}", *_lines(fields, "", 4, note)]
    return "\n".join(lines) + "\n"


def _note_of(sources: Sources, name: str, kind: str) -> Note:
    return lambda path: sources.at(name, kind, path)


def _lines(value: Mapping[str, Any], path: str, indent: int, note: Note) -> Iterator[str]:
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        yield from _item(f"{' ' * indent}{_inline(key)}:", item, place, indent + 2, note)


def _item(start: str, item: Any, place: str, indent: int, note: Note) -> Iterator[str]:
    comment = _comment(note(place))
    if isinstance(item, Mapping) and item:
        yield f"{start}{comment}"
        yield from _lines(item, place, indent, note)
    elif isinstance(item, list) and any(isinstance(one, Mapping) and one for one in item):
        yield f"{start}{comment}"
        for number, one in enumerate(item):
            yield from _item(f"{' ' * indent}-", one, f"{place}.{number}", indent + 2, note)
    else:
        yield f"{start} {_inline(item)}{comment}"


def _comment(source: str) -> str:
    return f"  # {' '.join(source.split())}" if source else ""


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDTH).removesuffix("...\n").strip()
