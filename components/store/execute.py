"""Runs one stage from its specification, in the same way on this machine and in a RayJob.

`execute(spec, storage, stage)` calls the stage's function with a `StageJob`, writes the manifest of its outputs and,
last of all, marks the MLflow run complete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import EXIT_STATUS, Terminated, UserError
from components.files import no_space_as_user_error
from components.process import set_up_logging
from components.store.settings import StorageSettings
from components.store.spec import StageSpec

if TYPE_CHECKING:
    from components.store.objects import ObjectStore
    from components.store.run import StageInput, StageRun

SPEC_VARIABLE = "ROBUSTRAIN_SPEC"
HEARTBEAT_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageJob:
    """Everything that a stage's function works with.

    Attributes:
        inputs: finished parents by role.
        run: the MLflow run that the stage writes to.
        objects: the store of large files.
    """

    spec: StageSpec
    inputs: dict[str, StageInput]
    run: StageRun
    objects: ObjectStore


StageFunction = Callable[[StageJob], dict[str, Any]]
"""The work of a stage; returns its small result."""


def execute(spec: StageSpec, storage: StorageSettings, stage: StageFunction) -> dict[str, Any]:
    """Runs one stage in this process into its MLflow run, marks the run complete and returns the stage's result.

    Raises:
        UserError: as the stage raises it, or no space is left. The cause is recorded in the run first, which is marked
            failed; the same holds for every other exception.
    """
    from components.store.objects import ObjectStore
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    if tracking.is_complete(spec.run_id):
        # Another pipeline's job has finished this very run after it was found interrupted and before we got the lock.
        _log.info("%s: run %s is complete already", spec.name, spec.run_id)
        return tracking.result_of(spec.run_id)
    run = tracking.attach(spec)
    inputs = {role: tracking.finished(parent, role) for role, parent in spec.parents.items()}
    job = StageJob(spec, inputs, run, ObjectStore(storage.objects_uri, storage.cache))
    try:
        with _heartbeat(run), _sigterm_as_exception(), no_space_as_user_error(storage.home):
            result = stage(job)
            run.finish(result, job.objects.stored)
    except BaseException as error:
        run.fail(error)
        raise
    return result


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
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
def _heartbeat(run: StageRun) -> Iterator[None]:
    """Sends heartbeats while the stage works, so that a living run can be distinguished from a dead one."""
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
    """Entry point of `python -m components.<stage> --spec FILE`, which a RayJob runs; prints the result as JSON.

    Without --spec the specification is read from the variable `ROBUSTRAIN_SPEC`.
    """
    parser = argparse.ArgumentParser(description="Run one stage from its specification.")
    parser.add_argument("--spec", type=Path, help=f"JSON file; default: the text in ${SPEC_VARIABLE}")
    options = parser.parse_args()
    try:
        set_up_logging()
        text = options.spec.read_text() if options.spec else os.environ.get(SPEC_VARIABLE, "")
        if not text:
            raise UserError("no specification is given", remedy=f"pass --spec FILE or set {SPEC_VARIABLE}")
        result = execute(StageSpec.model_validate_json(text), StorageSettings.from_environment(), stage)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
    print(json.dumps(result))
