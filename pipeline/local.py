"""Runs a recipe on this machine: starts the child that does it (`pipeline.conductor`), watches it, and ends it.

The child is the leader of a process session, so that everything that was started can be found and ended. KFP's output
goes to a log file; what people see comes from the stages' live files.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import EXIT_STATUS
from components.files import write_atomically
from components.store.locks import only_run_in
from components.store.progress import LIVE_VARIABLE, read_messages
from components.store.settings import StorageSettings
from components.store.tracking import ADOPTED_VARIABLE
from pipeline.recipe import Recipe
from pipeline.sessions import end_session
from pipeline.step import AGAIN_VARIABLE


@dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    Attributes:
        run_id: the parent's MLflow id.
        stages: for each stage its last live report.
        rows: the results, as `pipeline.results.Results.rows`; `worst_case` likewise.
        report: path of the HTML page; empty where the recipe has none.
        user: where it failed before any stage did: whether the person can mend it.
        status: of the process that ran it; below 0 the signal that ended it.
    """

    run_id: str
    ok: bool
    stages: dict[str, dict[str, Any]]
    log: Path
    rows: list[dict[str, Any]]
    report: str
    user: bool = False
    status: int = 0
    worst_case: list[dict[str, Any]] = field(default_factory=list)

    def failed(self) -> dict[str, Any] | None:
        """The report of the stage that failed, if one did; of several the first, whose end was the others'."""
        failed = [report for report in self.stages.values() if report.get("state") == "failed"]
        return min(failed, key=lambda report: report["time"], default=None)

    def cause(self) -> str:
        """Why it stopped where no stage failed: the signal that ended it, or the last thing that its log says."""
        if self.status < 0:
            return f"its process was ended by {signal.Signals(-self.status).name}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "its processes were killed"


def run_here(
    recipe: Recipe,
    storage: StorageSettings,
    *,
    again: tuple[str, ...] = (),
    jobs: int = 0,
    watch: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Runs a recipe to its end.

    Args:
        jobs: stages at once; 0: as `pipeline.crew.lanes_for` says.
        again: stages to run even where a finished run could be reused.
        watch: called several times a second with every stage's last report, by stage name.

    Raises:
        UserError: another run is under way in the same home.
        KeyboardInterrupt: after everything that was started has ended.
    """
    with only_run_in(storage.home):
        folder = storage.home / "live" / time.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "pipeline.log"
        asked = {"recipe": recipe.resolved(), "jobs": jobs, "command": os.getpid()}
        # Not sorted: the order of the recipe's stages is that of every table.
        request = write_atomically(folder / "request.json", json.dumps(asked))
        with log.open("wb") as output:
            command = [sys.executable, "-m", "pipeline.conductor", str(request)]
            child = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(storage, folder, again),
                start_new_session=True,
            )
        with _signals_to(child):
            while _lives(child):
                watch(reports(folder, recipe))
                time.sleep(0.15)
        stages = reports(folder, recipe)
        watch(stages)
    results = _written(folder / "results.json", {"rows": [], "report": ""})
    user = child.returncode == EXIT_STATUS
    return Outcome(
        _pipeline_run(folder), child.returncode == 0, stages, log, **results, user=user, status=child.returncode
    )


def _environment(storage: StorageSettings, folder: Path, again: tuple[str, ...]) -> dict[str, str]:
    # A run that somebody opened for something else must not become the run of every stage.
    kept = {name: value for name, value in os.environ.items() if name != ADOPTED_VARIABLE}
    ours = {LIVE_VARIABLE: str(folder), "PYTHONUNBUFFERED": "1", AGAIN_VARIABLE: ",".join(again)}
    return {**kept, **storage.environment(), **ours}


def _lives(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child runs. It is not reaped here: its process id stands for the session until that has ended."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def reports(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The last live report of every stage that has one."""
    found = {name: _written(folder / f"{name}.json", {}) for name in recipe.stages}
    said = {name: read_messages(folder / f"{name}.json") for name in found}
    return {name: {**report, "said": said[name]} for name, report in found.items() if report}


def _written(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return json.loads(path.read_text())
    return otherwise


def _pipeline_run(folder: Path) -> str:
    path = folder / "pipeline-run"
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def _signals_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the child's whole session after the block, however it and the child ended.

    Ctrl-C and SIGTERM end the block and become KeyboardInterrupt.
    """

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        end_session(child.pid)
        child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
