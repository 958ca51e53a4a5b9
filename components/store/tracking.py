"""Runs in MLflow: one per stage under one parent per pipeline run, and how a stage's state is told.

An MLflow run's own status is not evidence (a killed run stays RUNNING; one that raised can be FINISHED), so a run says
where it stands by the tag `stage_state`: `running` with a heartbeat, `failed` with the cause, and, written last, after
a manifest with size and sha256 of every output, `complete`. Only `complete` with a manifest that holds is reused.

Behaviour of MLflow relied upon: 3.17 (`MlflowClient` with explicit run ids only; the fluent API would adopt
`MLFLOW_RUN_ID` from the environment).

What the tracking store refuses (a damaged data base, a server that is away) as something a person can mend.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
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

# MERGED

ADOPTED_VARIABLE = "MLFLOW_RUN_ID"
"""A run that Kubeflow has opened for a step: the step's stage writes to it. On one machine it means nothing."""
_STAGE_TAG = "stage_of_recipe."
HOME = "home"
"""Tag of a pipeline run: the machine and the home it was started in."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Found:
    """What MLflow knows about a fingerprint: `state` is complete, interrupted or absent."""

    state: str
    run_id: str = ""
    pipeline_run: str = ""
    reason: str = ""


class Tracking:
    """The project's view of one MLflow tracking store."""

    def __init__(self, storage: StorageSettings) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self.storage = storage
        # Four processes that met a fresh sqlite data base at once broke its migration three times of four.
        with self._lock(), translate_tracking_errors(storage.tracking_uri):
            self.client = MlflowClient(tracking_uri=storage.tracking_uri)
        self._experiment_id = ""

    def _lock(self) -> AbstractContextManager[None]:
        return file_lock(self.storage.locks / "tracking.lock")

    @property
    def experiment_id(self) -> str:
        """The experiment's id; made with an absolute artifact location the first time."""
        if not self._experiment_id:
            with self._lock(), translate_tracking_errors(self.storage.tracking_uri):
                found = self.client.get_experiment_by_name(self.storage.experiment)
                self._experiment_id = found.experiment_id if found else self._create_experiment()
        return self._experiment_id

    def _create_experiment(self) -> str:
        return self.client.create_experiment(self.storage.experiment, artifact_location=self.storage.artifacts_uri)

    def open_pipeline_run(self, name: str, tags: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
        """A new parent run for one pipeline run, with the resolved recipe as an artifact; returns its id."""
        every = {"robustrain": "pipeline", STATE: RUNNING, HOME: self._home(), **tags}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=every)
        self.client.log_dict(run.info.run_id, dict(recipe), RECIPE)
        return run.info.run_id

    def close_left_open(self) -> None:
        """Marks runs of pipelines that this home left open as `failed`: they were stopped or killed.

        To be called by whoever holds the home's lock, so that none of them can still be alive.
        """
        left = f"tags.robustrain = 'pipeline' and tags.{STATE} = '{RUNNING}' and tags.{HOME} = '{self._home()}'"
        for run in self._search(left):
            self.close_pipeline_run(run.info.run_id, state=FAILED)

    def _home(self) -> str:
        return f"{socket.gethostname()}:{self.storage.home.resolve()}".replace("'", "")

    def cluster_run(self, kfp_run: str, recipe: Mapping[str, Any]) -> str:
        """The parent run of a KFP run; the first step that asks makes it, and all of them take the earliest.

        Args:
            recipe: the resolved recipe, as far as the step that asks knows it; kept by the run that is made.
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
        """Notes on the parent which run stands for a stage of its recipe; `how` is `ran` or `reused`."""
        if pipeline_run:
            self.client.set_tag(pipeline_run, f"{_STAGE_TAG}{stage}", f"{run_id} {how}")

    def stages_of(self, pipeline_run: str) -> dict[str, tuple[str, str]]:
        """Stage name -> (run id, `ran` or `reused`) of a pipeline run, as far as it came."""
        tags = self.client.get_run(pipeline_run).data.tags
        found = {k.removeprefix(_STAGE_TAG): v.split() for k, v in tags.items() if k.startswith(_STAGE_TAG)}
        return {name: (run_id, how) for name, (run_id, how) in found.items()}

    def find(self, fingerprint: str, deep: bool = True) -> Found:
        """The run to reuse or continue for this fingerprint, if any; the newest complete one wins.

        The newest, because whoever had a finished stage run once more wants what came of it.

        Args:
            deep: hold every artifact and object against its sha256; otherwise only against its size.
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
        """Why the outputs of a complete run cannot be trusted; an empty string when they can."""
        artifacts = self.artifacts(run)
        problem = artifacts.manifest_problem(run.data.tags.get("manifest_sha256", ""), deep=deep)
        if problem:
            return problem
        store = ObjectStore(self.storage.objects_uri, self.storage.cache)
        refs = [ObjectRef(**ref) for ref in artifacts.read_json(OBJECTS) or []]
        lost = next((ref.uri for ref in refs if not store.holds(ref, deep)), "")
        return f"its object {lost} is missing or is not what was stored" if lost else ""

    def _search(self, query: str) -> list[Any]:
        """Earliest first; ties by id, so that every process picks the same one."""
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        return list(self.client.search_runs([self.experiment_id], query, order_by=order, max_results=500))

    def begin(self, spec: StageSpec, adopt: str = "") -> str:
        """The id of the run that `spec` will write to: `adopt`ed (an interrupted one) or new.

        Returns:
            An empty string where the run to adopt has been completed meanwhile, which is then left as it is. Its state
            is not touched here in any case, but by `attach`, which whoever holds the claim on the work calls.
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
        """Whether a run says that it is complete; its outputs are not looked at."""
        return self.client.get_run(run_id).data.tags.get(STATE) == COMPLETE

    def result_of(self, run_id: str) -> dict[str, Any]:
        """The small result of a complete run."""
        return self.artifacts(self.client.get_run(run_id)).read_json("result.json") or {}

    def attach(self, spec: StageSpec) -> StageRun:
        """The run of `spec`, marked running and ready to be written to."""
        run = self.client.get_run(spec.run_id)
        if run.data.tags.get(STATE) != RUNNING:
            self.client.set_tag(spec.run_id, STATE, RUNNING)
        return StageRun(self.client, self.artifacts(run), spec, self.storage.work / spec.fingerprint)

    def finished(self, parent: ParentRef, role: str = "") -> StageInput:
        """A finished stage, for reading.

        Raises:
            UserError: the run is not complete.
        """
        run = self.client.get_run(parent.run_id)
        if run.data.tags.get(STATE) != COMPLETE:
            raise UserError(
                "the stage it needs is not complete", where=parent.name, value=run.data.tags.get(STATE), remedy="run it"
            )
        return StageInput.read(role, parent, self.artifacts(run))

    def artifacts(self, run: Any) -> Artifacts:
        """The artifact folder of an MLflow run object."""
        cache = self.storage.cache / "runs" / run.info.run_id
        return Artifacts(self.client, run.info.run_id, run.info.artifact_uri, cache)

    def last_pipeline_runs(self, limit: int = 20) -> list[dict[str, Any]]:
        """The newest pipeline runs first: id, name, state, start (ms since 1970), recipe."""
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
        """The resolved recipe that a pipeline run was started with."""
        return self.artifacts(self.client.get_run(pipeline_run)).read_json(RECIPE) or {}

    def last_duration(self, stage: str) -> float | None:
        """Seconds of work in the newest complete run of a stage of this name, without its pauses; None for none."""
        query = f"tags.stage = '{stage}' and tags.{STATE} = '{COMPLETE}'"
        order = ["attributes.start_time DESC"]
        runs = list(self.client.search_runs([self.experiment_id], query, order_by=order, max_results=1))
        worked = runs[0].data.tags.get(WORKED) if runs else None
        return None if worked is None else float(worked)


@contextmanager
def translate_tracking_errors(uri: str) -> Iterator[None]:
    """Turns a failure to open the store at `uri` inside the block into a `UserError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        remedy = (
            "move the file away (its runs are lost then), or set MLFLOW_TRACKING_URI to another store"
            if uri.startswith("sqlite:")
            else "start the server, or mend MLFLOW_TRACKING_URI"
        )
        raise UserError(f"the tracking store cannot be opened ({cause})", where=uri, remedy=remedy) from error
