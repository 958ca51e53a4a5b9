"""What every KFP step does: fingerprint, then reuse, continue or launch, then check.

The same function runs in a subprocess here and in a pod on a cluster. It knows the place only through the environment:
`ROBUSTRAIN_WARM` (a warm host forks the work) and `ROBUSTRAIN_LAUNCHER` (`here`, or `rayjob` on Kubernetes).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from components.errors import UserError
from components.fingerprint import fingerprint, fingerprinted
from components.launch import warm
from components.store.execute import execute
from components.store.locks import file_lock
from components.store.progress import Progress
from components.store.settings import StorageSettings
from components.store.spec import ParentRef, StageSpec
from pipeline import cluster_parent
from pipeline.handover import HANDOVER_VARIABLE, take
from pipeline.order import Order
from pipeline.stages import STAGES, StageKind

if TYPE_CHECKING:
    from components.store.tracking import Found, Tracking

LAUNCHER_VARIABLE = "ROBUSTRAIN_LAUNCHER"
AGAIN_VARIABLE = "ROBUSTRAIN_AGAIN"
"""Comma-separated stage names that must run even where a finished run could be reused."""


def run_step(order: str, parents: list[str], pipeline_run: str = "") -> str:
    """What a KFP step does: takes the stage from the crew that works ahead on this machine, or brings it to completion.

    Args and errors: as of `bring_to_completion`.
    """
    if folder := os.environ.get(HANDOVER_VARIABLE):
        return take(Path(folder), Order.model_validate_json(order).name)
    return bring_to_completion(order, parents, pipeline_run)


def bring_to_completion(order: str, parents: list[str], pipeline_run: str = "") -> str:
    """Brings one stage to completion and returns its token, `<run id>/<fingerprint>`.

    Args:
        order: JSON of an `Order`.
        parents: what the parents' steps returned, in the order of `Order.parents`.
        pipeline_run: MLflow id of the parent run; on a cluster empty, where the first step opens it.

    Raises:
        UserError: the stage cannot be done as asked.
        warm.CallFailed: the stage failed; the message names the log.
    """
    what, storage = Order.model_validate_json(order), StorageSettings.from_environment()
    run, ours = pipeline_run, ""
    if not run:
        run = ours = cluster_parent.opened(storage, what.whole_recipe())
    log = storage.logs / (run or "no-pipeline") / f"{what.name}.log"
    progress = Progress(what.name)
    try:
        done = _done(what, parents, run, log, storage)
    except BaseException as error:
        progress.set_state("failed", error=str(error), user=isinstance(error, UserError), log=str(log))
        cluster_parent.failed(storage, ours)
        raise
    progress.set_state(done["state"], run_id=done["run_id"], fingerprint=done["fingerprint"], origin=done["origin"])
    cluster_parent.close_when_complete(storage, ours)
    print(f"{what.name}: {done['state']} in run {done['run_id']}")
    return token(done["run_id"], done["fingerprint"])


def token(run_id: str, digest: str) -> str:
    """What a stage hands on to the next ones."""
    return f"{run_id}/{digest}"


def _done(what: Order, parents: list[str], run: str, log: Path, storage: StorageSettings) -> dict[str, str]:
    spec = specify(what, parents, run, storage.cache)
    kind, progress = STAGES[spec.kind], Progress(what.name)
    # The lock is held by this step, whose death frees it; on a cluster the RayJob's name is the claim instead.
    on_cluster = os.environ.get(LAUNCHER_VARIABLE) == "rayjob"
    waits = lambda: progress.set_state("waiting", note="another process works on this stage")  # noqa: E731
    with nullcontext() if on_cluster else file_lock(storage.locks / f"{spec.fingerprint}.lock", on_wait=waits):
        decision = warm.call("pipeline.step:decide", log, preload=("mlflow.tracking",), spec=spec.model_dump())
        spec = spec.model_copy(update={"run_id": decision["run_id"]})
        if decision["state"] != "reused":
            progress.set_state("running", phase="starting", note=decision["note"])
            launch(spec, kind, log)
            done = warm.call("pipeline.step:check", log, spec=spec.model_dump())
            spec = spec.model_copy(update={"run_id": done["run_id"]})
    origin = decision["origin"] if decision["state"] == "reused" else run
    return {"state": decision["state"], "run_id": spec.run_id, "fingerprint": spec.fingerprint, "origin": origin}


def specify(what: Order, parents: list[str], pipeline_run: str, cache: Path) -> StageSpec:
    """The stage's specification with its fingerprint; the run id is still empty."""
    refs = {}
    for (role, name, kind), token in zip(what.parents, parents, strict=True):
        run_id, _, digest = token.partition("/")
        refs[role] = ParentRef(name=name, kind=kind, run_id=run_id, fingerprint=digest)
    config = STAGES[what.kind].config.model_validate(what.config)
    return StageSpec(
        name=what.name,
        kind=what.kind,
        config=what.config,
        seed=what.seed,
        fingerprint=fingerprint_of(what.kind, config, {r: p.fingerprint for r, p in refs.items()}, what.seed, cache),
        parents=refs,
        pipeline_run=pipeline_run,
    )


def fingerprint_of(kind: str, config: BaseModel, parents: dict[str, str], seed: int, cache: Path) -> str:
    """The fingerprint of a stage, given its parents' fingerprints by role."""
    row = STAGES[kind]
    plain = fingerprinted(config, without=frozenset(parents))
    digest = row.source_digest(config, cache)
    return fingerprint(kind=kind, version=row.version, config=plain, parents=parents, data_digest=digest, seed=seed)


def decide(spec: dict[str, Any]) -> dict[str, str]:
    """Reuse a finished run, continue an interrupted one, or begin: `{"state", "run_id", "note", "origin"}`."""
    from components.store.tracking import Tracking

    stage = StageSpec.model_validate(spec)
    tracking = Tracking(StorageSettings.from_environment())
    found = tracking.find(stage.fingerprint)
    if _may_reuse(found, stage.name):
        tracking.record_stage(stage.pipeline_run, stage.name, found.run_id, "reused")
        return {"state": "reused", "run_id": found.run_id, "note": "", "origin": found.pipeline_run}
    adopt = found.run_id if found.state == "interrupted" else ""
    run_id = tracking.begin(stage, adopt)
    if not run_id:
        # Another pipeline has completed it since it was looked up.
        return decide(spec)
    tracking.record_stage(stage.pipeline_run, stage.name, run_id, "ran")
    note = f"continues run {run_id[:8]}: {found.reason}" if adopt else found.reason
    return {"state": "complete", "run_id": run_id, "note": note, "origin": ""}


def reusable(tracking: Tracking, name: str, digest: str) -> Found | None:
    """The finished run that stands for a stage of that fingerprint; None where the stage must run."""
    found = tracking.find(digest)
    return found if _may_reuse(found, name) else None


def _may_reuse(found: Found, name: str) -> bool:
    return found.state == "complete" and name not in os.environ.get(AGAIN_VARIABLE, "").split(",")


def launch(spec: StageSpec, kind: StageKind, log: Path) -> None:
    """Does the stage's work: here in a child of the warm host, or in a RayJob."""
    if kind.on == "job" and os.environ.get(LAUNCHER_VARIABLE) == "rayjob":
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
        return
    warm.call("pipeline.step:work", log, preload=kind.preload, nice=kind.nice, spec=spec.model_dump())


def _workers(spec: StageSpec) -> dict[str, int]:
    """How many working pods a stage's configuration asks for; evaluations do not say, and get one."""
    return {"workers": max(1, spec.config.get("workers", 1)), "workers_min": spec.config.get("workers_min") or 0}


def work(spec: dict[str, Any]) -> None:
    """Runs the stage's code in this process."""
    stage = StageSpec.model_validate(spec)
    execute(stage, StorageSettings.from_environment(), STAGES[stage.kind].function())


def check(spec: dict[str, Any]) -> dict[str, str]:
    """Holds the finished run against its manifest.

    Returns:
        `run_id`: of the run that is complete. Another one than the specification's where, on a cluster, the work was
        done by another pipeline's job that this step attached to.

    Raises:
        UserError: the run is not complete, or an output is not what its manifest says.
    """
    from components.store.tracking import Tracking

    stage = StageSpec.model_validate(spec)
    tracking = Tracking(StorageSettings.from_environment())
    found = tracking.find(stage.fingerprint, deep=False)
    if found.state != "complete":
        raise UserError(
            "the stage ended without a complete result", where=stage.name, value=found.reason, remedy="run it again"
        )
    if found.run_id != stage.run_id:
        tracking.record_stage(stage.pipeline_run, stage.name, found.run_id, "reused")
    return {"run_id": found.run_id}
