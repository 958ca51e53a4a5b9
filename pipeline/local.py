"""Runs the graph on this machine: KFP's local runner and a crew ahead of it, in a child process, beside a warm host.

The child is the leader of a process session, so that one signal to its group ends everything that was started. KFP's
output goes to a log file; what people see comes from the stages' live files.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.cores import CORES_VARIABLE, available_cores
from components.errors import UserError
from components.launch import warm
from components.store.claims import only_run_in
from components.store.digests import write_json
from components.store.places import Places
from components.store.progress import LIVE_VARIABLE, Progress
from pipeline.crew import Crew, lanes_for
from pipeline.handover import HANDOVER_VARIABLE
from pipeline.order import order_of
from pipeline.plan import fingerprints
from pipeline.recipe import Recipe, build
from pipeline.step import AGAIN_VARIABLE, bring_to_completion, reusable, token

GRACE_SECONDS = 3.0
"""How long the processes have to end by themselves before they are killed."""


@dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    Attributes:
        run_id: the parent's MLflow id.
        stages: for each stage its last live report.
        rows: the results, as `pipeline.results.Results.rows`.
        report: path of the HTML page; empty where the recipe has none.
    """

    run_id: str
    ok: bool
    stages: dict[str, dict[str, Any]]
    log: Path
    rows: list[dict[str, Any]]
    report: str

    def failed(self) -> dict[str, Any] | None:
        """The report of the stage that failed, if one did; of several the first, whose end was the others'."""
        failed = [report for report in self.stages.values() if report.get("state") == "failed"]
        return min(failed, key=lambda report: report["time"], default=None)


def run_here(
    recipe: Recipe,
    places: Places,
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
    with only_run_in(places.home):
        folder = places.home / "live" / time.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "pipeline.log"
        request = write_json(folder / "request.json", {"recipe": recipe.resolved(), "jobs": jobs})
        environment = {**os.environ, **places.environment(), LIVE_VARIABLE: str(folder), "PYTHONUNBUFFERED": "1"}
        environment[AGAIN_VARIABLE] = ",".join(again)
        with log.open("wb") as output:
            command = [sys.executable, "-m", "pipeline.local", str(request)]
            child = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        with _signals_to(child):
            while child.poll() is None:
                watch(reports(folder, recipe))
                time.sleep(0.15)
        stages = reports(folder, recipe)
        watch(stages)
    results = _written(folder / "results.json", {"rows": [], "report": ""})
    return Outcome(_pipeline_run(folder), child.returncode == 0, stages, log, **results)


def reports(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The last live report of every stage that has one."""
    found = {name: _written(folder / f"{name}.json", {}) for name in recipe.stages}
    return {name: report for name, report in found.items() if report}


def _written(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return json.loads(path.read_text())
    return otherwise


def _pipeline_run(folder: Path) -> str:
    path = folder / "pipeline-run"
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def _signals_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the child's whole session, whatever state it is in; then KeyboardInterrupt."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        if child.poll() is None:
            end_session(child.pid)
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_session(leader: int) -> None:
    """SIGTERM to every process of the session that `leader` leads, SIGKILL to those left after the grace time.

    By session, not by process group: a Ray that a stage has started has groups of its own but stays in the session
    unless it daemonises itself, and Ray's own processes end with their driver.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    _signal_all(session_members(leader), signal.SIGTERM)
    while session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(session_members(leader), signal.SIGKILL)


def _signal_all(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def session_members(session: int) -> list[int]:
    """Living processes of a session, read from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def open_run(recipe: dict[str, Any]) -> dict[str, Any]:
    """Creates the data base if there is none, and the parent run; called in the warm host's child.

    Returns:
        `run_id`, and `reused`: for every stage with a finished run its facts, all decided by this one process, since
        opening the data base costs more than asking it.
    """
    from components.store.tracking import Tracking

    places = Places.from_environment()
    tracking, chosen = Tracking(places), build(recipe)
    run_id = tracking.open_pipeline_run(recipe["name"], {"recipe": recipe["name"]}, recipe)
    reused = {}
    for name, digest in _fingerprints(chosen, places).items():
        found = reusable(tracking, name, digest)
        if found is not None:
            tracking.record_stage(run_id, name, found.run_id, "reused")
            reused[name] = {"run_id": found.run_id, "fingerprint": digest, "origin": found.pipeline_run}
    return {"run_id": run_id, "reused": reused}


def _fingerprints(recipe: Recipe, places: Places) -> dict[str, str]:
    """Of all stages; none where one's images cannot be read, which that stage itself will say."""
    try:
        return fingerprints(recipe, places.cache)
    except UserError:
        return {}


def close_run(run_id: str, state: str) -> dict[str, Any]:
    """Writes the parent's last state and returns the run's results; called in the warm host's child.

    Reading them here spares the command that waits the import of MLflow.
    """
    from components.store.tracking import Tracking
    from pipeline.results import read

    places = Places.from_environment()
    Tracking(places).close_pipeline_run(run_id, state=state)
    found = read(places, run_id)
    return {"rows": found.rows, "report": found.report}


def main(request: Path) -> None:
    """The child: starts the host, opens the parent run, works ahead, and lets KFP run the graph."""
    asked = json.loads(request.read_text())
    recipe, folder = build(asked["recipe"]), request.parent
    log = folder / "tracking.log"
    with warm.hosted(folder, ("mlflow.tracking",)) as socket:
        os.environ[warm.SOCKET_VARIABLE] = socket
        opened = warm.call("pipeline.local:open_run", log, recipe=asked["recipe"])
        run_id = opened["run_id"]
        (folder / "pipeline-run").write_text(run_id)
        os.environ["ROBUSTRAIN_PIPELINE_RUN"] = run_id
        state = "failed"
        try:
            _work_ahead(recipe, run_id, folder, asked["jobs"], opened["reused"])
            _run_graph(recipe, run_id, folder / "kfp")
            state = "complete"
        finally:
            with contextlib.suppress(warm.CallFailed):
                write_json(
                    folder / "results.json", warm.call("pipeline.local:close_run", log, run_id=run_id, state=state)
                )


def _work_ahead(recipe: Recipe, run_id: str, folder: Path, jobs: int, reused: dict[str, dict[str, str]]) -> Crew:
    """Starts the crew; KFP's steps, which inherit this environment, take what it hands over."""
    lanes = lanes_for(recipe, jobs)
    os.environ[CORES_VARIABLE] = str(max(1, available_cores() // lanes))

    def bring(name: str, parents: list[str]) -> str:
        return bring_to_completion(order_of(recipe.stages[name], recipe), parents, run_id)

    for name, facts in reused.items():
        Progress(name).state("reused", **facts)
    tokens = {name: token(facts["run_id"], facts["fingerprint"]) for name, facts in reused.items()}
    crew = Crew(recipe, folder, bring, lanes, tokens)
    os.environ[HANDOVER_VARIABLE] = str(folder)
    return crew


def _run_graph(recipe: Recipe, run_id: str, root: Path) -> None:
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # resources and image names mean nothing here
    from kfp import local

    from pipeline import graph

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    graph.build(recipe, retry=False)(pipeline_run=run_id)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
