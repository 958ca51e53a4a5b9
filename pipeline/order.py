"""What a step is told about its stage: one line of canonical JSON in the compiled pipeline."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.fingerprint import canonical_json
from pipeline.recipe import Recipe, Stage


class Order(BaseModel):
    """One stage of a compiled pipeline; `parents` lists (role, name, kind) in the order of the task's inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    parents: list[tuple[str, str, str]] = []


def order_of(node: Stage, recipe: Recipe) -> str:
    """The order for a stage of a recipe; equal recipes give equal text."""
    parents = [[role, name, recipe.stages[name].kind.name] for role, name in node.parents.items()]
    config = json.loads(node.config.model_dump_json())
    return canonical_json(
        {"name": node.name, "kind": node.kind.name, "config": config, "seed": recipe.head.seed, "parents": parents}
    )
