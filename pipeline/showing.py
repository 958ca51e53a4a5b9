"""A resolved recipe as YAML in which every value that has a source says it beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.recipe import Recipe

_WIDTH = 200


def annotated(recipe: Recipe) -> str:
    """The recipe's stages with all values; `# ...` says where a number comes from, or that it is not published."""
    resolved = recipe.resolved()
    sources = resolved.pop("sources")
    stages = resolved.pop("stages")
    lines = [*_lines(resolved, "", 0, {}), "stages:", *_lines(stages, "", 2, sources)]
    return "\n".join(lines) + "\n"


def _lines(value: Mapping[str, Any], path: str, indent: int, sources: Mapping[str, str]) -> Iterator[str]:
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        note = f"  # {sources[place]}" if place in sources else ""
        if isinstance(item, Mapping) and item:
            yield f"{' ' * indent}{key}:{note}"
            yield from _lines(item, place, indent + 2, sources)
        else:
            yield f"{' ' * indent}{key}: {_inline(item)}{note}"


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDTH).removesuffix("...\n").strip()
