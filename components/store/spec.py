"""The specification of one stage: everything that decides its result, and the MLflow run that it writes to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class ParentRef(BaseModel):
    """A reference to a finished stage that another one needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    run_id: str
    fingerprint: str


class StageSpec(BaseModel):
    """One stage, ready to run.

    Attributes:
        config: the stage's resolved configuration.
        parents: finished stages by role.
        run_id: the MLflow run that the stage writes to; empty until one is chosen.
        pipeline_run: the MLflow run of the pipeline, the parent of `run_id`; empty without a pipeline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    fingerprint: str
    parents: dict[str, ParentRef] = {}
    run_id: str = ""
    pipeline_run: str = ""
