"""The child process of a run on this machine: warm host, parent run, the crew ahead, and KFP's local runner.

`python -m pipeline.conductor request.json`, started by `pipeline.local`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from components.errors import EXIT_STATUS, UserError
from components.files import write_json
from components.launch import warm
from components.process import CORES_VARIABLE, available_cores, exit_with_parent
from components.store.progress import Progress
from components.store.settings import StorageSettings
from pipeline.crew import Crew, lanes_for
from pipeline.handover import HANDOVER_VARIABLE, handing_over
from pipeline.order import order_of
from pipeline.plan import fingerprints
from pipeline.recipe import Recipe, build
from pipeline.step import bring_to_completion, reusable, token


def open_run(recipe: dict[str, Any]) -> dict[str, Any]:
    """Creates the data base if there is none, and the parent run; called in the warm host's child.

    Returns:
        `run_id`, and `reused`: for every stage with a finished run its facts, all decided by this one process, since
        opening the data base costs more than asking it.
    """
    from components.store.tracking import Tracking

    storage = StorageSettings.from_environment()
    tracking, chosen = Tracking(storage), build(recipe)
    tracking.close_left_open()
    run_id = tracking.open_pipeline_run(recipe["name"], {"recipe": recipe["name"]}, recipe)
    reused = {}
    for name, digest in _fingerprints(chosen, storage).items():
        found = reusable(tracking, name, digest)
        if found is not None:
            tracking.record_stage(run_id, name, found.run_id, "reused")
            reused[name] = {"run_id": found.run_id, "fingerprint": digest, "origin": found.pipeline_run}
    return {"run_id": run_id, "reused": reused}


def _fingerprints(recipe: Recipe, storage: StorageSettings) -> dict[str, str]:
    """Of all stages; none where one's images cannot be read, which that stage itself will say."""
    try:
        return fingerprints(recipe, storage.cache)
    except UserError:
        return {}


def close_run(run_id: str, state: str) -> dict[str, Any]:
    """Writes the parent's last state and returns the run's results; called in the warm host's child.

    Reading them here spares the command that waits the import of MLflow.
    """
    from components.store.tracking import Tracking
    from pipeline.results import read

    storage = StorageSettings.from_environment()
    Tracking(storage).close_pipeline_run(run_id, state=state)
    found = read(storage, run_id)
    rows, worst_case = ([row.model_dump(mode="json") for row in some] for some in (found.rows, found.worst_case))
    return {"rows": rows, "worst_case": worst_case, "report": found.report}


def main(request: Path) -> None:
    """The child: starts the host, opens the parent run, works ahead, and lets KFP run the graph."""
    asked = json.loads(request.read_text())
    exit_with_parent(asked["command"])
    recipe, folder = build(asked["recipe"]), request.parent
    log = folder / "tracking.log"
    with handing_over(folder), warm.hosted(folder, ("mlflow.tracking",)) as socket:
        os.environ[warm.SOCKET_VARIABLE] = socket
        opened = warm.call("pipeline.conductor:open_run", log, recipe=asked["recipe"])
        run_id = opened["run_id"]
        (folder / "pipeline-run").write_text(run_id)
        state = "failed"
        try:
            _work_ahead(recipe, run_id, folder, asked["jobs"], opened["reused"])
            _run_graph(recipe, run_id, folder / "kfp")
            state = "complete"
        finally:
            with contextlib.suppress(warm.CallFailed):
                write_json(
                    folder / "results.json", warm.call("pipeline.conductor:close_run", log, run_id=run_id, state=state)
                )


def _work_ahead(recipe: Recipe, run_id: str, folder: Path, jobs: int, reused: dict[str, dict[str, str]]) -> Crew:
    """Starts the crew; KFP's steps, which inherit this environment, take what it hands over."""
    lanes = lanes_for(recipe, jobs)
    os.environ[CORES_VARIABLE] = str(max(1, available_cores() // lanes))

    def bring(name: str, parents: list[str]) -> str:
        return bring_to_completion(order_of(recipe.stages[name], recipe), parents, run_id)

    for name, facts in reused.items():
        Progress(name).set_state("reused", **facts)
    tokens = {name: token(facts["run_id"], facts["fingerprint"]) for name, facts in reused.items()}
    crew = Crew(recipe, folder, bring, lanes, tokens)
    os.environ[HANDOVER_VARIABLE] = str(folder)
    return crew


def _run_graph(recipe: Recipe, run_id: str, root: Path) -> None:
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # resources and image names mean nothing here
    from kfp import local

    from pipeline import graph

    # Every step of KFP leaves a folder behind. The stages are children of the host and keep their own TMPDIR: the path
    # of a Ray's socket must be short.
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tmp-", dir=root.parent)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    graph.build(recipe, retry=False)(pipeline_run=run_id)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (UserError, warm.CallFailed) as error:
        # The last line of the log: the command shows it where no stage has said why it failed.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS if isinstance(error, UserError) else 1)
