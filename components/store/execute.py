"""What a stage is given: its specification, its finished parents, its MLflow run, and the object store.

The same code runs a stage here and in a RayJob: `execute(spec, run)` does the stage's work, writes the manifest and,
last of all, marks the run complete.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import EXIT_STATUS, Terminated, UserError
from components.store.settings import StorageSettings
from components.store.spec import StageSpec

if TYPE_CHECKING:
    from components.store.objects import ObjectStore
    from components.store.tracking import StageInput, StageRun

SPEC_VARIABLE = "ROBUSTRAIN_SPEC"
HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True)
class StageJob:
    """Everything a stage's `run(job)` may touch."""

    spec: StageSpec
    inputs: dict[str, StageInput]
    run: StageRun
    objects: ObjectStore


StageFunction = Callable[[StageJob], dict[str, Any]]


def execute(spec: StageSpec, storage: StorageSettings, stage: StageFunction) -> dict[str, Any]:
    """Runs one stage into its MLflow run and marks that run complete, in this process.

    Raises:
        UserError: as the stage raises it; the run is marked failed with the cause first.
    """
    from components.store.objects import ObjectStore
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    if tracking.is_complete(spec.run_id):
        # Between the decision and the claim on the work another pipeline's job has finished this very run.
        print(f"{spec.name}: run {spec.run_id} is complete already")
        return tracking.result_of(spec.run_id)
    run = tracking.attach(spec)
    inputs = {role: tracking.finished(parent, role) for role, parent in spec.parents.items()}
    job = StageJob(spec, inputs, run, ObjectStore(storage.objects_uri, storage.cache))
    try:
        with _heart(run), _terminable(), _space_said(storage.home):
            result = stage(job)
            run.finish(result, job.objects.stored)
    except BaseException as error:
        run.fail(error)
        raise
    return result


@contextlib.contextmanager
def _space_said(home: Path) -> Iterator[None]:
    """Says that a disk is full as something the person can mend, wherever in a stage it happened."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remedy = "free some space, or set ROBUSTRAIN_HOME to another disk; complete stages are kept"
        raise UserError("no space is left", where=str(error.filename or home), remedy=remedy) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into `Terminated`, so that `finally` blocks run and a checkpoint can be taken."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _heart(run: StageRun) -> Iterator[None]:
    """Beats while the stage works, so that others can tell a living run from a dead one."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            run.heartbeat()

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main(stage: StageFunction) -> None:
    """`python -m components.<room> --spec spec.json`: what a RayJob runs. Without --spec, `ROBUSTRAIN_SPEC` is read."""
    parser = argparse.ArgumentParser(description="Run one stage from its specification.")
    parser.add_argument("--spec", type=Path, help="JSON file; default: the text in $ROBUSTRAIN_SPEC")
    options = parser.parse_args()
    text = options.spec.read_text() if options.spec else os.environ.get(SPEC_VARIABLE, "")
    try:
        if not text:
            raise UserError("no specification was given", remedy=f"pass --spec FILE or set {SPEC_VARIABLE}")
        result = execute(StageSpec.model_validate_json(text), StorageSettings.from_environment(), stage)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
    print(json.dumps(result))
