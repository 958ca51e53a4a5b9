"""Runs a recipe on this machine: one scheduler, in the process that the person has started; one child a stage.

MLflow is asked once, by this process, for all stages. A stage with work to do is a child that is forked from a
preloaded process (`components.launch.child_process`). If every stage can be reused, no other process is started.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError, nearest
from components.launch.child_process import Children, ChildStopped, ForkserverDied, start_forkserver, stop_forkserver
from components.process import CORES_VARIABLE, available_cores
from components.store.locks import only_run_in
from components.store.progress import LIVE_VARIABLE, Progress, new_live_folder, read_messages
from components.store.settings import StorageSettings
from components.store.spec import StageSpec
from components.store.tracking import ADOPTED_VARIABLE, Tracking
from pipeline.plan import fingerprints
from pipeline.recipe import Recipe
from pipeline.scheduler import Scheduler, max_parallel
from pipeline.stage_runner import StageResult, StageStopped, execute_stage, run_stage, stage_definition
from pipeline.stages import StageKind

if TYPE_CHECKING:
    from components.result_rows import ResultRow, WorstCaseRow

RUNNERS = ("local", "kfp")
"""What runs the stages: the scheduler of this package, or KFP's own local runner, one step after the other."""
_PRELOAD = ("pipeline.stage_runner", "numpy", "cv2", "mlflow.tracking")
_PRELOAD_TORCH = ("torch", "timm", "components.models", "ray.train")
"""Modules that are imported once, before the first stage is forked; the second line if a stage needs torch."""
_NICE_MEASURING = 5
_POLL_SECONDS = 0.15
_STOP_SECONDS = 5.0
"""Time for the threads of stopped stages to write their states."""
_log = logging.getLogger(__name__)

Watch = Callable[[dict[str, dict[str, Any]]], None]
"""Gets the last live report of every stage, by stage name."""


@dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    Attributes:
        run_id: MLflow id of the pipeline run.
        stages: for each stage its last live report.
        rows: the results, as `pipeline.results.Results.rows`; `worst_case` likewise.
        report: path of the HTML page; empty if the recipe has none.
        cause: why it stopped if no stage failed.
        user: whether `cause` is a `UserError`.
    """

    run_id: str
    ok: bool
    stages: dict[str, dict[str, Any]]
    log: Path
    rows: Sequence[ResultRow]
    report: str
    cause: str = ""
    user: bool = False
    worst_case: Sequence[WorstCaseRow] = ()

    def failed(self) -> dict[str, Any] | None:
        """Returns the report of the stage that failed, if one did; of several the first, which ended the others."""
        failed = [report for report in self.stages.values() if report.get("state") == "failed"]
        return min(failed, key=lambda report: report["time"], default=None)


def run_here(
    recipe: Recipe,
    storage: StorageSettings,
    *,
    again: tuple[str, ...] = (),
    jobs: int = 0,
    runner: str = "local",
    watch: Watch,
) -> Outcome:
    """Runs a recipe to its end. Called in the main thread, as it handles signals.

    Args:
        again: stages to run even if a finished run could be reused.
        jobs: stages at once; 0: as `pipeline.scheduler.max_parallel` says.
        runner: one of `RUNNERS`.
        watch: called several times a second.

    Raises:
        UserError: another run is under way in the same home, or the runner is unknown.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; everything that was started has ended.
    """
    if runner not in RUNNERS:
        hint = nearest(runner, RUNNERS)
        raise UserError(f"unknown runner{hint}", where="--runner", value=runner, remedy="use `local` or `kfp`")
    with only_run_in(storage.home):
        folder = new_live_folder(storage.home)
        run = (_Run if runner == "local" else _KfpRun)(recipe, storage, again, jobs, folder)
        with _logging_to(run.log), _interrupts(run.stop) as interrupted:
            run.complete(watch, interrupted)
        return run.outcome()


class _Run:
    """One run of a recipe; everything it starts has ended when `complete` returns or raises."""

    def __init__(
        self, recipe: Recipe, storage: StorageSettings, again: tuple[str, ...], jobs: int, folder: Path
    ) -> None:
        self.log = folder / "pipeline.log"
        self._recipe, self._storage, self._again, self._folder = recipe, storage, again, folder
        self._max_parallel = max_parallel(recipe, jobs)
        # A run that somebody has opened for something else must not become the run of every stage.
        self._children = Children(self._environment(), without=(ADOPTED_VARIABLE,))
        self._stop = threading.Event()
        self._tracking: Tracking | None = None
        self._run_id = ""
        self._cause, self._user, self._ok = "", False, False
        self._results: dict[str, Any] = {"rows": [], "report": ""}

    def _environment(self) -> dict[str, str]:
        # A stage's share of the cores is the same for the whole run: sums over threads depend on their number, and an
        # exact resume needs the same.
        cores = max(1, available_cores() // self._max_parallel)
        kept = {k: v for k, v in os.environ.items() if k.startswith(("ROBUSTRAIN_", "MLFLOW_", "AWS_"))}
        kept.pop(ADOPTED_VARIABLE, None)
        return {
            **kept,
            **self._storage.environment(),
            LIVE_VARIABLE: str(self._folder),
            CORES_VARIABLE: str(cores),
        }

    def stop(self) -> None:
        """Ends all stages, with checkpoints taken where there is time; none starts any more."""
        self._stop.set()
        self._children.stop()

    def complete(self, watch: Watch, interrupted: threading.Event) -> None:
        """Runs all stages and writes the pipeline run's state.

        Raises:
            KeyboardInterrupt: the run was interrupted.
        """
        try:
            self._open()
            self._run_stages(watch, interrupted)
        except Exception as error:
            _log.exception("the run stopped")
            self._cause, self._user = _described(error), isinstance(error, UserError)
        if interrupted.is_set():
            raise KeyboardInterrupt
        self._close()
        watch(self._reports())

    def _open(self) -> None:
        """Opens the pipeline run in MLflow; makes the data base if there is none."""
        if self._storage.is_fresh:
            self._preload(list(self._recipe.stages))  # Everything has to be run: import while MLflow does, too.
        with _no_garbage_collection():
            self._tracking = Tracking(self._storage)
        self._tracking.close_left_open()
        name = self._recipe.name
        self._run_id = self._tracking.open_pipeline_run(name, {"recipe": name}, self._recipe.resolved())

    def _run_stages(self, watch: Watch, interrupted: threading.Event) -> None:
        tokens = self._reuse()
        pending = [name for name in self._recipe.stages if name not in tokens]
        if pending:
            self._preload(pending)
        scheduler = Scheduler(self._recipe, self._run_stage, self._max_parallel, tokens)
        scheduler.start()
        while not scheduler.wait(_POLL_SECONDS) and not interrupted.is_set():
            watch(self._reports())
            if scheduler.failed:
                self.stop()
                scheduler.wait(_STOP_SECONDS)
                break
        if scheduler.error is not None and not self._cause:
            self._cause, self._user = _described(scheduler.error), isinstance(scheduler.error, UserError)
        self._ok = len(scheduler.tokens) == len(self._recipe.stages)

    def _reuse(self) -> dict[str, str]:
        """Looks up all stages in MLflow; returns the tokens of those that need no work."""
        assert self._tracking is not None
        tokens = {}
        try:
            prints = fingerprints(self._recipe, self._storage.cache)
        except UserError:
            return {}  # The images of a stage cannot be read: that stage will report it.
        for name, digest in prints.items():
            found = self._tracking.find(digest)
            if found.state == "complete" and name not in self._again:
                self._tracking.record_stage(self._run_id, name, found.run_id, "reused")
                Progress(name, self._folder).set_state(
                    "reused", run_id=found.run_id, fingerprint=digest, origin=found.pipeline_run
                )
                tokens[name] = StageResult("reused", found.run_id, digest).token
        return tokens

    def _preload(self, pending: list[str]) -> None:
        kinds = [self._recipe.stages[name].kind for name in pending]
        torch = _PRELOAD_TORCH if any(kind.trains or kind.measures for kind in kinds) else ()
        start_forkserver(self._folder / "forkserver.log", [*_PRELOAD, *torch])

    def _run_stage(self, name: str, parents: list[str]) -> str:
        assert self._tracking is not None
        return run_stage(
            stage_definition(self._recipe.stages[name], self._recipe),
            parents,
            storage=self._storage,
            tracking=self._tracking,
            launch=self._launch,
            pipeline_run=self._run_id,
            again=name in self._again,
            live=self._folder,
            stop=self._stop,
        ).token

    def _launch(self, spec: StageSpec, kind: StageKind, log: Path) -> None:
        try:
            # Other stages wait for a training, none for a measurement.
            nice = _NICE_MEASURING if kind.measures else 0
            self._children.run(execute_stage, spec.model_dump_json(), log=log, nice=nice)
        except ChildStopped:
            raise StageStopped from None
        except ForkserverDied as error:
            self._cause = str(error)
            raise StageStopped from error

    def _close(self) -> None:
        """Writes the pipeline run's last state and reads its results, in this process, which has imported MLflow."""
        if self._tracking is None or not self._run_id:
            return
        try:
            self._tracking.close_pipeline_run(self._run_id, state="complete" if self._ok else "failed")
            if self._ok:
                from pipeline.results import read

                found = read(self._storage, self._run_id)
                self._results = {"rows": found.rows, "worst_case": found.worst_case, "report": found.report}
        except Exception as error:
            _log.exception("the run's results cannot be read")
            self._ok, self._cause, self._user = False, _described(error), isinstance(error, UserError)

    def _reports(self) -> dict[str, dict[str, Any]]:
        return reports(self._folder, self._recipe)

    def outcome(self) -> Outcome:
        """How the run ended."""
        reports = self._reports()
        return Outcome(self._run_id, self._ok, reports, self.log, cause=self._cause, user=self._user, **self._results)


class _KfpRun(_Run):
    """The same with KFP's local runner in a child, which starts each step as a process that does the stage's work."""

    def _environment(self) -> dict[str, str]:
        from pipeline.kfp_step import AGAIN_VARIABLE

        return {**super()._environment(), AGAIN_VARIABLE: ",".join(self._again)}

    def _run_stages(self, watch: Watch, interrupted: threading.Event) -> None:
        import shutil
        import tempfile

        # Every step of KFP leaves a folder behind. A short path: the name of a Ray's socket has at most 107 bytes.
        temporary = tempfile.mkdtemp(prefix="rt-kfp-", dir="/tmp")
        errors: list[Exception] = []
        thread = threading.Thread(target=self._run_graph, args=(temporary, errors), daemon=True, name="kfp")
        try:
            thread.start()
            while thread.is_alive() and not interrupted.is_set():
                watch(self._reports())
                thread.join(_POLL_SECONDS)
        finally:
            self.stop()
            shutil.rmtree(temporary, ignore_errors=True)
        if errors:
            raise errors[0]
        self._ok = not interrupted.is_set()

    def _preload(self, pending: list[str]) -> None:
        start_forkserver(self._folder / "forkserver.log", ["kfp.local", "pipeline.graph"])

    def _run_graph(self, temporary: str, errors: list[Exception]) -> None:
        from pipeline.graph import run_locally

        try:
            recipe = json.dumps(self._recipe.resolved())
            self._children.run(run_locally, recipe, self._run_id, str(self._folder / "kfp"), temporary, log=self.log)
        except Exception as error:
            errors.append(error)


def _described(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError | ForkserverDied) else f"{type(error).__name__}: {error}"


def reports(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Returns the last live report of every stage that has one."""
    found = {}
    for name in recipe.stages:
        path = folder / f"{name}.json"
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found[name] = {**json.loads(path.read_text()), "messages": read_messages(path)}
    return found


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spares Python to look for garbage among the many objects that importing MLflow makes and that stay.

    Measured: 0.4 s while importing and 0.7 s when the command ends, of 3.0 CPU seconds of a run that reuses everything.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _logging_to(log: Path) -> Iterator[None]:
    """Writes this process's log records and warnings to a file, not to the terminal, where they break the display."""
    # MLflow would give its loggers handlers of their own, which write to the terminal.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    handler, root = logging.FileHandler(log), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    others = [other for other in root.handlers if getattr(other, "stream", None) in (sys.stdout, sys.stderr)]
    for other in others:
        root.removeHandler(other)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for other in others:
            root.addHandler(other)
        handler.close()


@contextlib.contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into KeyboardInterrupt; calls `stop` at the end of the block, however it ends.

    After an interruption the preloaded process is ended, too.

    Yields:
        An event that is set with the signal, as Python drops an exception that a handler raises in some storage.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]  # Started by `nohup`.
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield interrupted
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        stop()
        if interrupted.is_set():
            stop_forkserver()
        for number, handler in before.items():
            signal.signal(number, handler)
