"""Brings one stage to completion, in every place: fingerprint, then reuse, continue or launch, then check.

`run_stage` is called by the runner on this machine (`pipeline.local`) and by the steps of a KFP pipeline
(`pipeline.kfp_step`). They differ in how the work is launched: in a child process, in a RayJob, or in the process
itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from components.errors import UserError
from components.fingerprint import canonical_json, fingerprint, fingerprinted
from components.process import set_up_logging
from components.store.execute import execute
from components.store.locks import file_lock
from components.store.progress import Progress
from components.store.settings import StorageSettings
from components.store.spec import ParentRef, StageSpec
from pipeline.recipe import Recipe, Stage
from pipeline.stages import STAGES, StageKind

if TYPE_CHECKING:
    from components.store.tracking import Found, Tracking

MOST_RECIPE_CHARACTERS = 60_000
"""Linux takes 128 KiB for one argument of a program, and KFP gives a step all its inputs in one."""
_LOCK_POLL_SECONDS = 0.2
_log = logging.getLogger(__name__)

Launch = Callable[[StageSpec, StageKind, Path], None]
"""Does a stage's work and returns when it has ended: specification, row of the stage table, file for its output."""


class StageStopped(Exception):
    """The stage was asked to end before it was complete; what it has checkpointed is kept."""


class StageDefinition(BaseModel):
    """One stage of a compiled pipeline; `parents` lists (role, name, kind) in the order of the task's inputs.

    A stage without parents holds the whole resolved recipe, its `stages` as a list of (name, fields) to keep their
    order: on a cluster the first step opens the run of all of them. Empty in the others, and where a recipe is longer
    than `MOST_RECIPE_CHARACTERS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    parents: list[tuple[str, str, str]] = []
    recipe: dict[str, Any] = {}

    def whole_recipe(self) -> dict[str, Any]:
        """Returns the resolved recipe; empty where this definition does not hold it."""
        return {**self.recipe, "stages": dict(self.recipe["stages"])} if self.recipe else {}


@dataclass(frozen=True)
class StageResult:
    """A complete stage.

    Attributes:
        state: `reused`, or `complete` where it was run.
        origin: MLflow id of the pipeline run in which it was run.
    """

    state: str
    run_id: str
    fingerprint: str
    origin: str = ""

    @property
    def token(self) -> str:
        """What the next stages get: `<run id>/<fingerprint>`."""
        return f"{self.run_id}/{self.fingerprint}"


def stage_definition(node: Stage, recipe: Recipe) -> StageDefinition:
    """Returns the definition of a stage of a recipe."""
    parents = [(role, name, recipe.stages[name].kind.name) for role, name in node.parents.items()]
    config = json.loads(node.config.model_dump_json())
    whole: dict[str, Any] = {}
    if not parents:
        resolved = recipe.resolved()
        whole = {**resolved, "stages": [[name, fields] for name, fields in resolved["stages"].items()]}
        if len(canonical_json(whole)) > MOST_RECIPE_CHARACTERS:
            whole = {}
    return StageDefinition(
        name=node.name, kind=node.kind.name, config=config, seed=recipe.head.seed, parents=parents, recipe=whole
    )


def stage_definition_json(node: Stage, recipe: Recipe) -> str:
    """Returns the definition as one line of canonical JSON; equal recipes give equal text."""
    fields = stage_definition(node, recipe).model_dump(mode="json")
    return canonical_json(fields if fields["recipe"] else {k: v for k, v in fields.items() if k != "recipe"})


def run_stage(
    definition: StageDefinition,
    parents: list[str],
    *,
    storage: StorageSettings,
    tracking: Tracking,
    launch: Launch,
    pipeline_run: str = "",
    again: bool = False,
    lock: bool = True,
    live: Path | None = None,
    stop: threading.Event | None = None,
) -> StageResult:
    """Brings one stage to completion and reports its state for the live display.

    Args:
        parents: tokens of the parents, in the order of `StageDefinition.parents`.
        pipeline_run: MLflow id of the parent run; empty for none.
        again: run the stage even if a finished run could be reused.
        lock: claim the stage by a file lock, which this process's death frees. Not on a cluster, where the RayJob's
            name is the claim.
        live: folder of the live display; default: the environment's.
        stop: once set, a stage that waits for its lock gives up.

    Raises:
        UserError: the stage cannot be run as it is configured.
        StageStopped: it was asked to end.
        Exception: as `launch` raises it.
    """
    log = storage.logs / (pipeline_run or "no-pipeline") / f"{definition.name}.log"
    progress = Progress(definition.name, live)
    try:
        spec = specify(definition, parents, pipeline_run, storage.cache)
        path = storage.locks / f"{spec.fingerprint}.lock"
        with _exclusive(path, progress, stop or threading.Event()) if lock else contextlib.nullcontext():
            result = _complete(spec, tracking, launch, again, log, progress)
    except StageStopped:
        progress.set_state("stopped", note="stopped; the next run continues it")
        raise
    except BaseException as error:
        progress.set_state("failed", error=str(error), user=isinstance(error, UserError), log=str(log))
        raise
    progress.set_state(result.state, run_id=result.run_id, fingerprint=result.fingerprint, origin=result.origin)
    _log.info("%s: %s in run %s", definition.name, result.state, result.run_id)
    return result


@contextlib.contextmanager
def _exclusive(path: Path, progress: Progress, stop: threading.Event) -> Iterator[None]:
    """Holds a stage's lock; waits while another process works on the stage."""
    waits = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(file_lock(path, wait=False))
                break
            except BlockingIOError:
                if not waits:
                    progress.set_state("waiting", note="another process works on this stage")
                waits = True
            if stop.wait(_LOCK_POLL_SECONDS):
                raise StageStopped
        yield


def _complete(
    spec: StageSpec, tracking: Tracking, launch: Launch, again: bool, log: Path, progress: Progress
) -> StageResult:
    decided, note = decide(spec, tracking, again)
    if decided.state == "reused":
        return decided
    progress.set_state("running", phase="starting", note=note)
    spec = spec.model_copy(update={"run_id": decided.run_id})
    launch(spec, STAGES[spec.kind], log)
    return StageResult(decided.state, check(spec, tracking), spec.fingerprint, spec.pipeline_run)


def specify(definition: StageDefinition, parents: list[str], pipeline_run: str, cache: Path) -> StageSpec:
    """Returns the stage's specification with its fingerprint; the run id is still empty."""
    refs = {}
    for (role, name, kind), token in zip(definition.parents, parents, strict=True):
        run_id, _, digest = token.partition("/")
        refs[role] = ParentRef(name=name, kind=kind, run_id=run_id, fingerprint=digest)
    config = STAGES[definition.kind].config.model_validate(definition.config)
    prints = {role: parent.fingerprint for role, parent in refs.items()}
    return StageSpec(
        name=definition.name,
        kind=definition.kind,
        config=definition.config,
        seed=definition.seed,
        fingerprint=fingerprint_of(definition.kind, config, prints, definition.seed, cache),
        parents=refs,
        pipeline_run=pipeline_run,
    )


def fingerprint_of(kind: str, config: BaseModel, parents: dict[str, str], seed: int, cache: Path) -> str:
    """Returns the fingerprint of a stage.

    Args:
        parents: the parents' fingerprints by role.
        cache: folder that keeps the digests of unchanged folders of images.
    """
    row = STAGES[kind]
    plain = fingerprinted(config, without=frozenset(parents))
    digest = row.source_digest(config, cache)
    return fingerprint(kind=kind, version=row.version, config=plain, parents=parents, data_digest=digest, seed=seed)


def decide(spec: StageSpec, tracking: Tracking, again: bool = False) -> tuple[StageResult, str]:
    """Reuses a finished run, continues an interrupted one, or begins a new one.

    Returns:
        The run (`reused`, or `complete` for the run that the stage is to complete), and a note for people.
    """
    found = tracking.find(spec.fingerprint)
    if found.state == "complete" and not again:
        return reuse(found, spec, tracking), ""
    adopt = found.run_id if found.state == "interrupted" else ""
    run_id = tracking.begin(spec, adopt)
    if not run_id:
        # Another pipeline has completed it since it was looked up.
        return decide(spec, tracking, again)
    tracking.record_stage(spec.pipeline_run, spec.name, run_id, "ran")
    note = f"continues run {run_id[:8]}: {found.reason}" if adopt else found.reason
    return StageResult("complete", run_id, spec.fingerprint), note


def reuse(found: Found, spec: StageSpec, tracking: Tracking) -> StageResult:
    """Records on the pipeline run that a finished run stands for a stage."""
    tracking.record_stage(spec.pipeline_run, spec.name, found.run_id, "reused")
    return StageResult("reused", found.run_id, spec.fingerprint, found.pipeline_run)


def launch_in_process(spec: StageSpec, kind: StageKind, log: Path) -> None:
    """Does the stage's work in this process; its output goes where this process's output goes."""
    execute(spec, StorageSettings.from_environment(), kind.function())


def execute_stage(spec_json: str) -> None:
    """Does a stage's work in this process, given the JSON of its `StageSpec`: what a child process is started with."""
    set_up_logging()
    spec = StageSpec.model_validate_json(spec_json)
    execute(spec, StorageSettings.from_environment(), STAGES[spec.kind].function())


def check(spec: StageSpec, tracking: Tracking) -> str:
    """Compares the finished run with its manifest.

    Returns:
        Id of the run that is complete. Another one than the specification's if, on a cluster, another pipeline's job
        did the work and this step attached to it.

    Raises:
        UserError: the run is not complete, or an output differs from its manifest.
    """
    found = tracking.find_run(spec.run_id)
    if found.state != "complete":
        found = tracking.find(spec.fingerprint, deep=False)
    if found.state != "complete":
        raise UserError(
            "the stage ended without a complete result", where=spec.name, value=found.reason, remedy="run it again"
        )
    if found.run_id != spec.run_id:
        tracking.record_stage(spec.pipeline_run, spec.name, found.run_id, "reused")
    return found.run_id
