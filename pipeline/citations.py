"""Citations: where a recipe's numbers come from, and the resolved recipe with the citations as comments.

A recipe's `sources` maps keys to texts. A key is `STAGES.FIELDS`. STAGES are names or kinds of stages, `training`
(every kind that trains) or `all`; FIELDS are fields or parts of them (`attack.eps`, `threats.0.eps`). Both may be lists
with commas: `convstem, radius.lr, betas`. A key covers a value and everything below it. Without FIELDS it covers whole
stages, and `all` alone covers the recipe; a field of the recipe itself (`seed`) is a key too. The most specific field
path wins. On a tie: stage name, then stage kind, then `training`, then `all`.

`robustrain recipes --show NAME` prints each value with its source as a comment. A source of several values is printed
beside their heading: the field, the stage, or `stages:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from components.errors import UserError, nearest
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

EVERY = "all"
"""Covers every stage, and alone the whole recipe."""
TRAINS = "training"
"""Covers every stage that trains."""


class Sources:
    """The sources of one recipe, looked up by stage and field."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._texts = {target: text for key, text in written.items() for target in _targets(key)}

    def at(self, name: str, kind: str, path: str) -> str:
        """Returns the source of exactly this field of a stage (of the stage if `path` is empty), or an empty string."""
        found = (self._texts.get((word, path)) for word in _words(name, kind) if path or word != EVERY)
        return next((text for text in found if text), "")

    def of_recipe(self, field: str = EVERY) -> str:
        """Returns the source of a field of the recipe itself, by default of all its stages, or an empty string."""
        return self._texts.get((field, ""), "")


def check_sources(
    written: Mapping[str, str],
    stages: Mapping[str, tuple[str, type[BaseModel]]],
    left_out: Iterable[str],
    fields: Iterable[str],
) -> None:
    """Checks that every key covers something, at least a stage that the recipe sets to null.

    Args:
        stages: name -> kind and configuration class of each stage.
        left_out: names of the stages that are set to null.
        fields: names of the recipe's own fields.

    Raises:
        UserError: a key matches no stage or no field.
    """
    gone = {word for name in left_out for word in _words(name, name.split("-")[0])}
    here = {word for name, (kind, _) in stages.items() for word in _words(name, kind)}
    for key in written:
        for word, path in _targets(key):
            if word in here:
                models = [model for name, (kind, model) in stages.items() if word in _words(name, kind)]
                if not any(_has(model, path.split(".") if path else []) for model in models):
                    _refuse(key, path, sorted({field for model in models for field in model.model_fields}), "field")
            elif not (word in gone or (word in fields and not path)):
                _refuse(key, word, sorted({*here, *fields}), "stage, kind or field")


def _refuse(key: str, part: str, known: list[str], what: str) -> None:
    remedy = f"correct or remove the key; known are: {', '.join(known)}"
    raise UserError(
        f"this source covers nothing: there is no {what} {part!r}{nearest(part, known)}",
        where="sources",
        value=key,
        remedy=remedy,
    )


def _words(name: str, kind: str) -> list[str]:
    """Returns the words by which a key can name a stage, the most specific first."""
    return [
        name,
        kind,
        *([TRAINS] if kind in STAGES and STAGES[kind].trains else []),
        *([EVERY] if kind in STAGES else []),
    ]


def _targets(key: str) -> list[tuple[str, str]]:
    """Returns (word, path) of each stage and field that a key lists."""
    words, _, paths = key.partition(".")
    return [(word.strip(), path.strip()) for word in words.split(",") for path in paths.split(",")]


def _has(annotation: Any, parts: list[str]) -> bool:
    """Returns whether a configuration can have a value at this path."""
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


Note = Callable[[str], str]
"""Maps the dotted path of a value to its source, or to an empty string."""

_WIDTH = 10**6
"""Maximum line length: a value is never broken over several lines, which would separate it from its source."""


def annotated(recipe: Recipe) -> str:
    """Returns the recipe as YAML with all values; `# ...` gives the source of a value."""
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
        at = f"{path}.{key}" if path else key
        yield from _item(f"{' ' * indent}{_inline(key)}:", item, at, indent + 2, note)


def _item(start: str, item: Any, path: str, indent: int, note: Note) -> Iterator[str]:
    comment = _comment(note(path))
    if isinstance(item, Mapping) and item:
        yield f"{start}{comment}"
        yield from _lines(item, path, indent, note)
    elif isinstance(item, list) and any(isinstance(one, Mapping) and one for one in item):
        yield f"{start}{comment}"
        for number, one in enumerate(item):
            yield from _item(f"{' ' * indent}-", one, f"{path}.{number}", indent + 2, note)
    else:
        yield f"{start} {_inline(item)}{comment}"


def _comment(source: str) -> str:
    return f"  # {' '.join(source.split())}" if source else ""


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDTH).removesuffix("...\n").strip()
