"""The MLflow run of a pipeline on a cluster: no driver of ours is there to open and close it, so the steps do.

The first step opens it, with the recipe that its order holds; every later one finds it by Kubeflow's run id. Whichever
step finds that all stages of the recipe are complete closes it. A step that fails marks it failed; where Kubeflow tries
that step again and all goes well in the end, it is complete after all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from components.store.run import COMPLETE, FAILED
from components.store.settings import KFP_RUN_VARIABLE, StorageSettings


def opened(storage: StorageSettings, recipe: Mapping[str, Any]) -> str:
    """The parent run's id, made if there is none; empty where this is no run of Kubeflow.

    Args:
        recipe: resolved; empty where this step does not know it.
    """
    from components.store.tracking import Tracking

    kfp_run = os.environ.get(KFP_RUN_VARIABLE, "")
    return Tracking(storage).cluster_run(kfp_run, recipe) if kfp_run else ""


def close_when_complete(storage: StorageSettings, run: str) -> None:
    """Marks the parent complete once every stage of its recipe is. Does nothing for an empty id."""
    from components.store.tracking import Tracking

    if not run:
        return
    tracking = Tracking(storage)
    names = tracking.recipe_of(run).get("stages", {})
    stages = tracking.stages_of(run)
    if names and all(name in stages and tracking.is_complete(stages[name][0]) for name in names):
        tracking.close_pipeline_run(run, state=COMPLETE)


def failed(storage: StorageSettings, run: str) -> None:
    """Marks the parent failed. Does nothing for an empty id; a tracking server that is away hides no other error."""
    from components.store.tracking import Tracking

    with contextlib.suppress(Exception):
        if run:
            Tracking(storage).close_pipeline_run(run, state=FAILED)
