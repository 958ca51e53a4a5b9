"""The Kubeflow end: upload a compiled pipeline, start it, follow it, cancel it, schedule it.

Through `kfp.Client`, with what it leaves out: waiting ends when a run is cancelled (the client's never does,
kubeflow/pipelines #14473), and a pipeline of the same name gets a new version.

What `run --on kubeflow` and `cancel` do: compile, start, follow and end a run on a cluster, and say how it went.

As light to import as `pipeline.cli` itself: everything heavy is imported inside the functions.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from components.errors import UserError
from pipeline.kubeflow_client import ClusterSettings, connect, refused, said, told, unreachable

if TYPE_CHECKING:
    from pipeline.kubeflow_client import ClusterSettings
    from pipeline.recipe import Recipe

__all__ = ["ClusterSettings", "RunFailedError", "RunOutcome", "cancel", "schedule", "submit", "wait"]

CALL_SECONDS = (5, 30)
ENDS = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
"""States after which a run does not change."""


class RunFailedError(Exception):
    """A run on the cluster has ended without success; nothing about the command was wrong."""


@dataclass(frozen=True)
class RunOutcome:
    """A run that has ended well. `tasks`: state by task name."""

    run_id: str
    state: str
    tasks: dict[str, str]


def submit(
    package: Path, *, pipeline_name: str, run_name: str, parameters: Mapping[str, Any], settings: ClusterSettings
) -> str:
    """Uploads the package as the pipeline of that name, or as a new version of it, starts a run, returns the run's id.

    Raises:
        UserError: the API is out of reach or refuses.
    """
    client = connect(settings)
    with told(settings, "start the run"):
        pipeline, version = _upload(client, package, pipeline_name, settings)
        run = client.run_pipeline(
            experiment_id=_experiment(client, settings),
            job_name=run_name,
            params=dict(parameters),
            pipeline_id=pipeline,
            version_id=version,
            enable_caching=False,
            service_account=settings.service_account or None,
        )
    return run.run_id


def schedule(
    package: Path,
    *,
    pipeline_name: str,
    run_name: str,
    cron: str,
    parameters: Mapping[str, Any],
    settings: ClusterSettings,
) -> str:
    """Uploads the package and starts it by the clock: one run at a time, no missed run made up.

    Returns the schedule's id.

    Args:
        cron: six fields, seconds first: `0 0 2 * * 1` is Mondays at 02:00.

    Raises:
        UserError: the expression has not six fields; the API is out of reach or refuses.
    """
    if len(cron.split()) != 6:
        fields = "write six: second minute hour day month weekday"
        hint = f"write '0 {cron}'" if len(cron.split()) == 5 else fields
        raise UserError("Kubeflow's cron expressions have six fields", where="schedule", value=cron, remedy=hint)
    client = connect(settings)
    with told(settings, "create the schedule"):
        pipeline, version = _upload(client, package, pipeline_name, settings)
        made = client.create_recurring_run(
            experiment_id=_experiment(client, settings),
            job_name=run_name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=dict(parameters),
            pipeline_id=pipeline,
            version_id=version,
            enable_caching=False,
            service_account=settings.service_account or None,
        )
    return made.recurring_run_id


def wait(run_id: str, *, settings: ClusterSettings, show: Callable[[str], None] = print) -> RunOutcome:
    """Follows a run to its end and tells every change of a task's state.

    Raises:
        RunFailedError: the run failed or was cancelled. One line, with where to look.
        UserError: the run is not known, or the API stayed out of reach; then the run itself goes on.
    """
    client = connect(settings)
    shown: dict[str, str] = {}
    lost_since: float | None = None
    while True:
        try:
            run = _read(client, run_id, settings)
            lost_since = None
        except _PassingError as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > settings.outage_s:
                raise error.told from error
        else:
            tasks = _tasks(run)
            for identity, (name, state, _) in tasks.items():
                if shown.get(identity) != state:
                    shown[identity] = state
                    show(f"{name}: {state.lower()}")
            if run.state in ENDS:
                return _ended(run, tasks, settings)
        time.sleep(settings.poll_s)


def cancel(run_id: str, *, settings: ClusterSettings) -> list[str]:
    """Ends a run, deletes its RayJobs and returns their names: Kubeflow's own way may leave jobs behind.

    Raises:
        UserError: an API is out of reach or refuses; the message says which, and whether the run was ended.
    """
    from components.launch import rayjob

    client = connect(settings)
    with told(settings, "cancel the run"):
        client.terminate_run(run_id)
    try:
        # A label selects the jobs; no image is needed for that.
        return rayjob.cancel(run_id, settings=rayjob.RayJobSettings(image="", namespace=settings.job_namespace))
    except UserError as error:
        label = f"{rayjob.RUN_LABEL}={rayjob.label_value(run_id)}"
        raise UserError(
            f"the run was told to end, but its RayJobs could not be deleted: {error}".rstrip("."),
            where=f"run {run_id}",
            remedy=f"kubectl -n {settings.job_namespace} delete rayjobs -l {label}",
        ) from error


def _upload(client: Any, package: Path, name: str, settings: ClusterSettings) -> tuple[str, str]:
    """(pipeline id, version id) of the package; equal packages give one version."""
    from kfp_server_api import ApiException

    namespace = settings.namespace or None
    try:
        made = client.upload_pipeline(str(package), pipeline_name=name, namespace=namespace)
        versions = client.list_pipeline_versions(made.pipeline_id, page_size=1, sort_by="created_at desc")
        return made.pipeline_id, versions.pipeline_versions[0].pipeline_version_id
    except ApiException as error:
        if error.status != 409:
            raise
    pipeline = _only(client.list_pipelines(filter=_named(name), namespace=namespace).pipelines, name).pipeline_id
    version = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    try:
        added = client.upload_pipeline_version(str(package), version, pipeline_id=pipeline)
        return pipeline, added.pipeline_version_id
    except ApiException as error:
        if error.status != 409:
            raise
    there = client.list_pipeline_versions(pipeline, filter=_named(version)).pipeline_versions
    return pipeline, _only(there, version).pipeline_version_id


def _named(name: str) -> str:
    """A filter for one display name; 1 is EQUALS."""
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _only(found: list[Any] | None, name: str) -> Any:
    if not found:
        raise UserError(
            "the name is taken by something that this account may not see",
            where="pipeline",
            value=name,
            remedy="give the recipe another name",
        )
    return found[0]


def _experiment(client: Any, settings: ClusterSettings) -> str:
    return client.create_experiment(settings.experiment, namespace=settings.namespace or None).experiment_id


class _PassingError(Exception):
    """The API did not answer this time; `told` is what to say if it stays so."""

    def __init__(self, told: UserError) -> None:
        super().__init__(str(told))
        self.told = told


def _read(client: Any, run_id: str, settings: ClusterSettings) -> Any:
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return client.runs.run_service_get_run(run_id=run_id, _request_timeout=CALL_SECONDS)
    except ApiException as error:
        if error.status and error.status < 500 and error.status != 429:
            refused(error.status, said(error), settings, f"read run {run_id}")
        raise _PassingError(unreachable(settings, error)) from error
    except (HTTPError, OSError) as error:
        raise _PassingError(unreachable(settings, error)) from error


def _tasks(run: Any) -> dict[str, tuple[str, str, str]]:
    """Task id -> (name, state, error). Kubeflow's own helpers (drivers, the root) are left out."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found: dict[str, tuple[str, str, str]] = {}
    for task in details:
        name = task.display_name or ""
        if name and name not in {"root", "executor"} and not name.endswith("-driver"):
            found[task.task_id] = (name, task.state or "PENDING", task.error.message if task.error else "")
    return found


def _ended(run: Any, tasks: dict[str, tuple[str, str, str]], settings: ClusterSettings) -> RunOutcome:
    where = f"run {run.run_id}"
    if run.state == "CANCELED":
        raise RunFailedError(f"{where} was cancelled. Start it again: finished stages are reused.")
    if run.state == "FAILED":
        failed = [(name, error) for name, state, error in tasks.values() if state == "FAILED"]
        name, error = failed[0] if failed else ("", run.error.message if run.error else "")
        what = f"stage {name} failed" if name else "failed"
        cause = " ".join(error.split()).rstrip(".") or "no cause was given"
        raise RunFailedError(f"{where}: {what}: {cause}. Read the step's log at {settings.run_url(run.run_id)}.")
    return RunOutcome(run.run_id, run.state, {name: state for name, state, _ in tasks.values()})


def run_on_kubeflow(recipe: Recipe, wait: bool, again: tuple[str, ...] = (), jobs: int = 0) -> None:
    """Compiles a recipe, starts it on the cluster and, with `wait`, follows it to its end.

    Raises:
        UserError: an option that only means something on this machine; the cluster is out of reach or refuses.
        typer.Exit: the run failed (1), or Ctrl-C ended the following (130).
    """
    import tempfile

    from pipeline import graph

    _refuse("--again", again, "run the stage on this machine, or change one of its fields")
    _refuse("--jobs", jobs, "leave it out: Kubeflow starts every stage whose parents are done")
    settings = ClusterSettings.from_environment()
    with tempfile.TemporaryDirectory() as folder:
        package = graph.compile_to(recipe, Path(folder) / "pipeline.yaml", settings.image or graph.IMAGE)
        run_id = submit(
            package, pipeline_name=f"robustrain-{recipe.name}", run_name=recipe.name, parameters={}, settings=settings
        )
    print(f"submitted: run {run_id}\npage:      {settings.run_url(run_id)}", flush=True)
    if wait:
        _follow(run_id, settings)


def cancel_on_kubeflow(run_id: str) -> None:
    """Ends a run on the cluster and deletes its RayJobs, and says which.

    Raises:
        UserError: the cluster is out of reach or refuses.
    """
    # MERGED

    jobs = cancel(run_id, settings=ClusterSettings.from_environment())
    print(f"cancelled: run {run_id}")
    print(f"deleted:   {', '.join(f'RayJob {name}' for name in jobs) or 'no RayJob was left'}")


def _follow(run_id: str, settings: ClusterSettings) -> None:
    # MERGED

    try:
        wait(run_id, settings=settings)
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"no longer followed; run {run_id} goes on. To end it: robustrain cancel {run_id}")
        raise typer.Exit(130) from None


def _refuse(option: str, value: object, remedy: str) -> None:
    if value:
        raise UserError("means nothing on a cluster", where=option, value=value, remedy=remedy)
