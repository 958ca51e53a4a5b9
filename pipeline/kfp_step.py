"""What a step of the compiled KFP pipeline runs, in a pod on a cluster or in a process of KFP's local runner.

On a cluster no driver of ours opens and closes the MLflow run of the whole pipeline, so the steps do. The first step
opens it, with the recipe that its definition holds; every later one finds it by Kubeflow's run id. The step that finds
all stages of the recipe complete closes it. A step that fails marks it failed; if Kubeflow retries that step with
success, it is complete in the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.process import set_up_logging
from components.store.run import COMPLETE, FAILED
from components.store.settings import KFP_RUN_VARIABLE, StorageSettings
from components.store.spec import StageSpec
from pipeline.stage_runner import StageDefinition, launch_in_process, run_stage
from pipeline.stages import StageKind

if TYPE_CHECKING:
    from components.store.tracking import Tracking

LAUNCHER_VARIABLE = "ROBUSTRAIN_LAUNCHER"
"""`rayjob` in the image of the steps on a cluster; elsewhere a step does its stage's work itself."""
AGAIN_VARIABLE = "ROBUSTRAIN_AGAIN"
"""Comma-separated stage names that must run even where a finished run could be reused."""


def run_step(definition: str, parents: list[str], pipeline_run: str = "") -> str:
    """Brings one stage to completion and returns its token, `<run id>/<fingerprint>`.

    Args:
        definition: JSON of a `StageDefinition`.
        parents: the tokens that the parents' steps returned, in the order of `StageDefinition.parents`.
        pipeline_run: MLflow id of the parent run; on a cluster empty, where the first step opens it.

    Raises:
        UserError: the stage cannot be run as it is configured.
        Exception: the stage failed.
    """
    from components.store.tracking import Tracking

    set_up_logging()
    stage, storage = StageDefinition.model_validate_json(definition), StorageSettings.from_environment()
    tracking, on_cluster = Tracking(storage), os.environ.get(LAUNCHER_VARIABLE) == "rayjob"
    run, ours = pipeline_run, ""
    if not run:
        run = ours = open_parent(tracking, stage.whole_recipe())
    try:
        result = run_stage(
            stage,
            parents,
            storage=storage,
            tracking=tracking,
            launch=launch_rayjob if on_cluster else launch_in_process,
            pipeline_run=run,
            again=stage.name in os.environ.get(AGAIN_VARIABLE, "").split(","),
            lock=not on_cluster,
        )
    except BaseException:
        mark_parent_failed(tracking, ours)
        raise
    close_complete_parent(tracking, ours)
    return result.token


def launch_rayjob(spec: StageSpec, kind: StageKind, log: Path) -> None:
    """Does the stage's work in a RayJob; stages that need no resources of their own are run in this process."""
    if kind.resources is None:
        launch_in_process(spec, kind, log)
        return
    from components.launch import rayjob

    rayjob.launch(
        spec.model_dump_json(),
        stage=spec.name,
        kind=spec.kind,
        package=kind.package,
        fingerprint=spec.fingerprint,
        resources=replace(kind.resources, **_workers(spec)),
        settings=rayjob.RayJobSettings.from_environment(),
    )


def _workers(spec: StageSpec) -> dict[str, int]:
    """Returns how many worker pods a stage's configuration asks for: one for stages without such a field."""
    wanted = spec.config.get
    return {"workers": max(1, wanted("num_workers", 1)), "workers_min": wanted("min_workers") or 0}


def open_parent(tracking: Tracking, recipe: Mapping[str, Any]) -> str:
    """Returns the id of the pipeline's MLflow run, made if there is none; empty outside of Kubeflow.

    Args:
        recipe: resolved; empty where this step does not have it.
    """
    kfp_run = os.environ.get(KFP_RUN_VARIABLE, "")
    return tracking.cluster_run(kfp_run, recipe) if kfp_run else ""


def close_complete_parent(tracking: Tracking, run: str) -> None:
    """Marks the pipeline's run complete once every stage of its recipe is. Does nothing for an empty id."""
    if not run:
        return
    names = tracking.recipe_of(run).get("stages", {})
    stages = tracking.stages_of(run)
    if names and all(name in stages and tracking.is_complete(stages[name][0]) for name in names):
        tracking.close_pipeline_run(run, state=COMPLETE)


def mark_parent_failed(tracking: Tracking, run: str) -> None:
    """Marks the pipeline's run failed. Does nothing for an empty id; an unreachable server hides no other error."""
    with contextlib.suppress(Exception):
        if run:
            tracking.close_pipeline_run(run, state=FAILED)
