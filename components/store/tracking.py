"""MLflow runs: one per stage, below one per pipeline run, and how the state of a stage is known.

MLflow's own status of a run is not evidence: a killed run stays RUNNING, and one that raised can be FINISHED. A stage's
state is the tag `stage_state`: `running` (with a heartbeat), `failed` (with the cause), and `complete`, which is
written last, after a manifest with size and sha256 of every output. Only a `complete` run that matches its manifest is
reused.

Relies on MLflow 3.17. Only `MlflowClient` with explicit run ids is used; the fluent API would adopt `MLFLOW_RUN_ID`
from the environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import write_atomically
from components.store.artifacts import Artifacts
from components.store.locks import file_lock
from components.store.objects import ObjectRef, ObjectStore
from components.store.run import (
    COMPLETE,
    ERROR,
    FAILED,
    FINGERPRINT,
    OBJECTS,
    RECIPE,
    RUNNING,
    STATE,
    WORKED,
    StageInput,
    StageRun,
)
from components.store.settings import KFP_RUN_VARIABLE, StorageSettings
from components.store.spec import ParentRef, StageSpec

ADOPTED_VARIABLE = "MLFLOW_RUN_ID"
"""Names the run that Kubeflow has opened for a step, which the stage then writes to. Ignored outside Kubeflow."""
_STAGE_TAG = "stage_of_recipe."
HOME = "home"
"""Tag of a pipeline run: the machine and the home folder where it was started."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Found:
    """The state of the work with one fingerprint.

    Attributes:
        state: `complete`, `interrupted` or `absent`.
        run_id: the run to reuse or to continue; empty if absent.
        pipeline_run: the pipeline run that it belongs to.
        reason: why it is not complete.
    """

    state: str
    run_id: str = ""
    pipeline_run: str = ""
    reason: str = ""


class Tracking:
    """Runs of stages and pipelines in one MLflow tracking store."""

    def __init__(self, storage: StorageSettings) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self.storage = storage
        # Four processes that opened a fresh SQLite file at once broke its migration in three of four trials.
        with self._lock(), translate_tracking_errors(storage.tracking_uri):
            if (file := _sqlite_file(storage.tracking_uri)) and not file.exists():
                # A process killed while MLflow creates the tables would leave a file that MLflow cannot open.
                write_atomically(file, lambda part: MlflowClient(tracking_uri=f"sqlite:///{part}"))
            self.client = MlflowClient(tracking_uri=storage.tracking_uri)
        self._experiment_id = ""

    def _lock(self) -> AbstractContextManager[None]:
        return file_lock(self.storage.locks / "tracking.lock")

    @property
    def experiment_id(self) -> str:
        """The experiment's id. The experiment is created the first time, with an absolute artifact location."""
        if not self._experiment_id:
            with self._lock(), translate_tracking_errors(self.storage.tracking_uri):
                found = self.client.get_experiment_by_name(self.storage.experiment)
                self._experiment_id = found.experiment_id if found else self._create_experiment()
        return self._experiment_id

    def _create_experiment(self) -> str:
        return self.client.create_experiment(self.storage.experiment, artifact_location=self.storage.artifacts_uri)

    def open_pipeline_run(self, name: str, tags: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
        """Creates the parent run of one pipeline run, with the resolved recipe as an artifact, and returns its id."""
        every = {"robustrain": "pipeline", STATE: RUNNING, HOME: self._home(), **tags}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=every)
        self.client.log_dict(run.info.run_id, dict(recipe), RECIPE)
        return run.info.run_id

    def close_left_open(self) -> None:
        """Marks this home's pipeline runs that were stopped or killed as `failed`.

        The caller holds the home's lock, so none of them is still alive.
        """
        query = f"tags.robustrain = 'pipeline' and tags.{STATE} = '{RUNNING}' and tags.{HOME} = '{self._home()}'"
        for run in self._search(query):
            self.close_pipeline_run(run.info.run_id, state=FAILED)

    def _home(self) -> str:
        return f"{socket.gethostname()}:{self.storage.home.resolve()}".replace("'", "")

    def cluster_run(self, kfp_run: str, recipe: Mapping[str, Any]) -> str:
        """Returns the parent run of a KFP run. The first step creates it; if several do at once, all use the earliest.

        Args:
            recipe: the resolved recipe as far as the calling step knows it; stored with a new run.
        """
        query = f"tags.kfp_run_id = '{kfp_run}' and tags.robustrain = 'pipeline'"
        if not self._search(query):
            name = str(recipe.get("name") or f"kubeflow {kfp_run[:8]}")
            self.open_pipeline_run(name, {"kfp_run_id": kfp_run, "recipe": str(recipe.get("name", ""))}, recipe)
        return self._search(query)[0].info.run_id

    def close_pipeline_run(self, run_id: str, *, state: str) -> None:
        """Marks a pipeline run `complete` or `failed`."""
        self.client.set_tag(run_id, STATE, state)
        self.client.set_terminated(run_id, "FINISHED" if state == COMPLETE else "FAILED")

    def record_stage(self, pipeline_run: str, stage: str, run_id: str, how: str) -> None:
        """Records in the pipeline run which run a stage of its recipe has; `how` is `ran` or `reused`."""
        if pipeline_run:
            self.client.set_tag(pipeline_run, f"{_STAGE_TAG}{stage}", f"{run_id} {how}")

    def stages_of(self, pipeline_run: str) -> dict[str, tuple[str, str]]:
        """Returns stage name -> (run id, `ran` or `reused`) for the stages of a pipeline run that have a run so far."""
        tags = self.client.get_run(pipeline_run).data.tags
        found = {k.removeprefix(_STAGE_TAG): v.split() for k, v in tags.items() if k.startswith(_STAGE_TAG)}
        return {name: (run_id, how) for name, (run_id, how) in found.items()}

    def find(self, fingerprint: str, deep: bool = True) -> Found:
        """Returns the run to reuse or to continue for a fingerprint, if any.

        If several complete runs match, the newest is used: it is the one that a user ran again with --again.

        Args:
            deep: verify the sha256 of every artifact and object, not only their sizes.
        """
        runs = self._search(f"tags.{FINGERPRINT} = '{fingerprint}'")
        reason = ""
        for run in reversed(runs):
            if run.data.tags.get(STATE) == COMPLETE:
                reason = self._problem(run, deep)
                if not reason:
                    return Found(COMPLETE, run.info.run_id, run.data.tags.get("pipeline_run", ""))
        unfinished = [run for run in runs if run.data.tags.get(STATE) != COMPLETE]
        if unfinished:
            last = unfinished[-1]
            cause = last.data.tags.get(ERROR, "it was stopped")
            return Found("interrupted", last.info.run_id, last.data.tags.get("pipeline_run", ""), reason or cause)
        return Found("absent", reason=reason)

    def _problem(self, run: Any, deep: bool) -> str:
        """Returns why the outputs of a complete run cannot be reused; an empty string if they can."""
        artifacts = self.artifacts(run)
        problem = artifacts.manifest_problem(run.data.tags.get("manifest_sha256", ""), deep=deep)
        if problem:
            return problem
        store = ObjectStore(self.storage.objects_uri, self.storage.cache)
        refs = [ObjectRef(**ref) for ref in artifacts.read_json(OBJECTS) or []]
        lost = next((ref.uri for ref in refs if not store.holds(ref, deep)), "")
        return f"its object {lost} is missing or has changed" if lost else ""

    def _search(self, query: str) -> list[Any]:
        """Returns runs, earliest first, ties by id, so that every process picks the same one."""
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        return list(self.client.search_runs([self.experiment_id], query, order_by=order, max_results=500))

    def begin(self, spec: StageSpec, adopt: str = "") -> str:
        """Returns the id of the run that `spec` will write to: a new one, or the interrupted run `adopt`.

        The state of an adopted run stays as it is until `attach`, which the holder of the work's lock calls.

        Returns:
            The run's id; an empty string if the run to adopt has been completed meanwhile.
        """
        if adopt and self.is_complete(adopt):
            return ""
        tags = {
            "robustrain": "stage",
            FINGERPRINT: spec.fingerprint,
            "stage": spec.name,
            "stage_kind": spec.kind,
            "pipeline_run": spec.pipeline_run,
        }
        if spec.pipeline_run:
            tags["mlflow.parentRunId"] = spec.pipeline_run
        opened = os.environ.pop(ADOPTED_VARIABLE, "") if os.environ.get(KFP_RUN_VARIABLE) else ""
        run_id = adopt or opened
        if not run_id:
            made = self.client.create_run(self.experiment_id, run_name=spec.name, tags={**tags, STATE: RUNNING})
            return made.info.run_id
        attempt = int(self.client.get_run(run_id).data.tags.get("stage_attempt", "1"))
        for key, value in {**tags, "stage_attempt": str(attempt + bool(adopt))}.items():
            self.client.set_tag(run_id, key, value)
        self.client.update_run(run_id, status="RUNNING", name=spec.name)
        return run_id

    def is_complete(self, run_id: str) -> bool:
        """Returns whether a run is marked complete; its outputs are not checked."""
        return self.client.get_run(run_id).data.tags.get(STATE) == COMPLETE

    def result_of(self, run_id: str) -> dict[str, Any]:
        """Returns the small result of a complete run."""
        return self.artifacts(self.client.get_run(run_id)).read_json("result.json") or {}

    def attach(self, spec: StageSpec) -> StageRun:
        """Marks the run of `spec` as running and returns it for writing."""
        run = self.client.get_run(spec.run_id)
        if run.data.tags.get(STATE) != RUNNING:
            self.client.set_tag(spec.run_id, STATE, RUNNING)
        return StageRun(self.client, self.artifacts(run), spec, self.storage.work / spec.fingerprint)

    def finished(self, parent: ParentRef, role: str = "") -> StageInput:
        """Returns a finished stage for reading.

        Raises:
            UserError: the run is not complete.
        """
        run = self.client.get_run(parent.run_id)
        if run.data.tags.get(STATE) != COMPLETE:
            raise UserError(
                "this stage is needed and not complete",
                where=parent.name,
                value=run.data.tags.get(STATE),
                remedy="run it first",
            )
        return StageInput.read(role, parent, self.artifacts(run))

    def artifacts(self, run: Any) -> Artifacts:
        """Returns the artifacts of an MLflow run object."""
        cache = self.storage.cache / "runs" / run.info.run_id
        return Artifacts(self.client, run.info.run_id, run.info.artifact_uri, cache)

    def last_pipeline_runs(self, limit: int = 20) -> list[dict[str, Any]]:
        """Returns the newest pipeline runs first, each with id, name, state, start (ms since 1970) and recipe name."""
        runs = self.client.search_runs(
            [self.experiment_id],
            "tags.robustrain = 'pipeline'",
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
        return [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "state": run.data.tags.get(STATE, ""),
                "start": run.info.start_time,
                "recipe": run.data.tags.get("recipe", ""),
            }
            for run in runs
        ]

    def recipe_of(self, pipeline_run: str) -> dict[str, Any]:
        """Returns the resolved recipe of a pipeline run."""
        return self.artifacts(self.client.get_run(pipeline_run)).read_json(RECIPE) or {}

    def last_duration(self, stage: str) -> float | None:
        """Returns the seconds of work in the newest complete run of a stage of this name, without pauses; else None."""
        query = f"tags.stage = '{stage}' and tags.{STATE} = '{COMPLETE}'"
        order = ["attributes.start_time DESC"]
        runs = list(self.client.search_runs([self.experiment_id], query, order_by=order, max_results=1))
        seconds = runs[0].data.tags.get(WORKED) if runs else None
        return None if seconds is None else float(seconds)


def _sqlite_file(uri: str) -> Path | None:
    """Returns the file of an SQLite store with an absolute path; None for any other store."""
    path = uri.removeprefix("sqlite:///")
    return Path(path) if path != uri and path.startswith("/") and "?" not in path else None


@contextmanager
def translate_tracking_errors(uri: str) -> Iterator[None]:
    """Turns a failure to open the tracking store at `uri` inside the block into a `UserError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        remedy = (
            "move the file away (its runs are lost then), or set MLFLOW_TRACKING_URI to another store"
            if uri.startswith("sqlite:")
            else "start the server, or correct MLFLOW_TRACKING_URI"
        )
        raise UserError(f"the tracking store cannot be opened ({cause})", where=uri, remedy=remedy) from error
