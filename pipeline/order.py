"""What a step is told about its stage: one line of canonical JSON in the compiled pipeline."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.fingerprint import canonical_json
from pipeline.recipe import Recipe, Stage

MOST_RECIPE_CHARACTERS = 60_000
"""Linux takes 128 KiB for one argument of a program, and KFP hands a step all its inputs in one."""


class Order(BaseModel):
    """One stage of a compiled pipeline; `parents` lists (role, name, kind) in the order of the task's inputs.

    A stage without parents knows the whole resolved recipe, its `stages` as a list of (name, fields) to keep their
    order: on a cluster the step that comes first opens the run of all of them. Empty in the others, and where a recipe
    is longer than `MOST_RECIPE_CHARACTERS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    parents: list[tuple[str, str, str]] = []
    recipe: dict[str, Any] = {}

    def whole_recipe(self) -> dict[str, Any]:
        """The resolved recipe, as it was given; empty where this order does not hold it."""
        return {**self.recipe, "stages": dict(self.recipe["stages"])} if self.recipe else {}


def order_of(node: Stage, recipe: Recipe) -> str:
    """The order for a stage of a recipe; equal recipes give equal text."""
    parents = [[role, name, recipe.stages[name].kind.name] for role, name in node.parents.items()]
    config = json.loads(node.config.model_dump_json())
    order = {"name": node.name, "kind": node.kind.name, "config": config, "seed": recipe.head.seed, "parents": parents}
    if parents:
        return canonical_json(order)
    resolved = recipe.resolved()
    whole = {**resolved, "stages": [[name, fields] for name, fields in resolved["stages"].items()]}
    short = len(canonical_json(whole)) <= MOST_RECIPE_CHARACTERS
    return canonical_json({**order, "recipe": whole} if short else order)
