"""The specification of one stage: everything that decides what it computes, and the MLflow run it writes to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class ParentRef(BaseModel):
    """A finished stage that another one needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    run_id: str
    fingerprint: str


class StageSpec(BaseModel):
    """One stage, ready to run: resolved configuration, parents by role, and the MLflow run that it writes to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    fingerprint: str
    parents: dict[str, ParentRef] = {}
    run_id: str = ""
    pipeline_run: str = ""
