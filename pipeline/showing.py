"""A resolved recipe as YAML in which every value that has a source says it beside it.

A source that speaks for more than one value stands beside their heading: the field, the stage, or `stages:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from pipeline.recipe import Recipe
from pipeline.sources import Sources

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
