"""Runs a recipe on Kubeflow Pipelines: upload, start, follow, cancel, schedule.

`run_on_kubeflow` and `cancel_on_kubeflow` are the commands; `submit`, `schedule`, `wait` and `cancel` are the calls
behind them. They use `kfp.Client` and add what it lacks: waiting ends when a run is cancelled (the client's never does,
kubeflow/pipelines #14473), and a pipeline whose name exists gets a new version.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from components.errors import UserError
from components.launch import rayjob
from pipeline.kubeflow_client import (
    KubeflowSettings,
    connect,
    error_message,
    raise_refusal,
    translate_api_errors,
    unreachable,
)

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

__all__ = [
    "KubeflowSettings",
    "RunFailedError",
    "RunResult",
    "cancel",
    "cancel_on_kubeflow",
    "run_on_kubeflow",
    "schedule",
    "submit",
    "wait",
]

CALL_SECONDS = (5, 30)
END_STATES = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
"""States after which a run does not change."""


class RunFailedError(Exception):
    """A run on the cluster has failed or was cancelled; the command itself was correct."""


@dataclass(frozen=True)
class RunResult:
    """A run that has succeeded. `tasks`: state by task name."""

    run_id: str
    state: str
    tasks: dict[str, str]


def run_on_kubeflow(recipe: Recipe, follow: bool, again: tuple[str, ...] = (), jobs: int = 0) -> None:
    """Compiles a recipe, starts it on the cluster and, with `follow`, follows it to its end.

    Args:
        recipe: to run.
        follow: whether to wait for the end of the run.
        again: value of `--again`, which is refused here.
        jobs: value of `--jobs`, which is refused here.

    Raises:
        UserError: an option has no effect on a cluster; the cluster is unreachable or refuses.
        typer.Exit: the run failed (1), or Ctrl-C ended the following (130).
    """
    from pipeline import graph

    _refuse("--again", again, "run the stage on this machine, or change one of its fields")
    _refuse("--jobs", jobs, "leave it out: Kubeflow starts every stage whose parents are done")
    settings = KubeflowSettings.from_environment()
    with tempfile.TemporaryDirectory() as folder:
        package = graph.compile_to(recipe, Path(folder) / "pipeline.yaml", settings.image or graph.IMAGE)
        run_id = submit(
            package, pipeline_name=f"robustrain-{recipe.name}", run_name=recipe.name, parameters={}, settings=settings
        )
    print(f"submitted: run {run_id}\npage:      {settings.run_url(run_id)}", flush=True)
    if follow:
        _follow(run_id, settings)


def cancel_on_kubeflow(run_id: str) -> None:
    """Cancels a run on the cluster, deletes its RayJobs, and prints their names.

    Raises:
        UserError: the cluster is unreachable or refuses.
    """
    jobs = cancel(run_id, settings=KubeflowSettings.from_environment())
    print(f"cancelled: run {run_id}")
    print(f"deleted:   {', '.join(f'RayJob {name}' for name in jobs) or 'no RayJob was left'}")


def _follow(run_id: str, settings: KubeflowSettings) -> None:
    try:
        wait(run_id, settings=settings)
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"stopped following; run {run_id} continues. To cancel it: robustrain cancel {run_id}")
        raise typer.Exit(130) from None


def _refuse(option: str, value: object, remedy: str) -> None:
    """Raises if an option of local runs is used."""
    if value:
        raise UserError("has no effect on a cluster", where=option, value=value, remedy=remedy)


def submit(
    package: Path, *, pipeline_name: str, run_name: str, parameters: Mapping[str, Any], settings: KubeflowSettings
) -> str:
    """Uploads the package as a pipeline, or as a new version of an existing one, and starts a run.

    Args:
        package: a compiled pipeline, YAML.
        pipeline_name: name of the pipeline.
        run_name: name of the run.
        parameters: of the pipeline.
        settings: of the installation.

    Returns:
        The run's id.

    Raises:
        UserError: the API is unreachable or refuses.
    """
    client = connect(settings)
    with translate_api_errors(settings, "start the run"):
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
    settings: KubeflowSettings,
) -> str:
    """Uploads the package and schedules it: one run at a time, missed runs are not made up.

    Args:
        package: a compiled pipeline, YAML.
        pipeline_name: name of the pipeline.
        run_name: name of the recurring run.
        cron: six fields, seconds first: `0 0 2 * * 1` is Mondays at 02:00.
        parameters: of the pipeline.
        settings: of the installation.

    Returns:
        The recurring run's id.

    Raises:
        UserError: the expression does not have six fields; the API is unreachable or refuses.
    """
    if len(cron.split()) != 6:
        fields = "write six: second minute hour day month weekday"
        hint = f"write '0 {cron}'" if len(cron.split()) == 5 else fields
        raise UserError("Kubeflow's cron expressions have six fields", where="schedule", value=cron, remedy=hint)
    client = connect(settings)
    with translate_api_errors(settings, "create the schedule"):
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


def wait(run_id: str, *, settings: KubeflowSettings, print_line: Callable[[str], None] = print) -> RunResult:
    """Follows a run to its end and prints every change of a task's state.

    Args:
        run_id: of the run.
        settings: of the installation.
        print_line: called with each line.

    Raises:
        RunFailedError: the run failed or was cancelled. One line that says where to look.
        UserError: the run is not known, or the API was unreachable for too long; the run itself continues.
    """
    client = connect(settings)
    printed: dict[str, str] = {}
    unreachable_since: float | None = None
    while True:
        try:
            run = _read(client, run_id, settings)
            unreachable_since = None
        except _RetriableError as error:
            unreachable_since = unreachable_since or time.monotonic()
            if time.monotonic() - unreachable_since > settings.outage_s:
                raise error.user_error from error
        else:
            tasks = _tasks(run)
            for task_id, (name, state, _) in tasks.items():
                if printed.get(task_id) != state:
                    printed[task_id] = state
                    print_line(f"{name}: {state.lower()}")
            if run.state in END_STATES:
                return _result(run, tasks, settings)
        time.sleep(settings.poll_s)


def cancel(run_id: str, *, settings: KubeflowSettings) -> list[str]:
    """Cancels a run, deletes its RayJobs and returns their names: Kubeflow's own cancelling may leave jobs behind.

    Raises:
        UserError: an API is unreachable or refuses; the message says which, and whether the run was cancelled.
    """
    client = connect(settings)
    with translate_api_errors(settings, "cancel the run"):
        client.terminate_run(run_id)
    try:
        return rayjob.cancel(run_id, namespace=settings.job_namespace)
    except UserError as error:
        label = f"{rayjob.RUN_LABEL}={rayjob.label_value(run_id)}"
        raise UserError(
            f"the run was cancelled, but its RayJobs could not be deleted: {error}".rstrip("."),
            where=f"run {run_id}",
            remedy=f"kubectl -n {settings.job_namespace} delete rayjobs -l {label}",
        ) from error


def _upload(client: Any, package: Path, name: str, settings: KubeflowSettings) -> tuple[str, str]:
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
    pipeline = _only(client.list_pipelines(filter=_name_filter(name), namespace=namespace).pipelines, name).pipeline_id
    version = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    try:
        added = client.upload_pipeline_version(str(package), version, pipeline_id=pipeline)
        return pipeline, added.pipeline_version_id
    except ApiException as error:
        if error.status != 409:
            raise
    existing = client.list_pipeline_versions(pipeline, filter=_name_filter(version)).pipeline_versions
    return pipeline, _only(existing, version).pipeline_version_id


def _name_filter(name: str) -> str:
    """A filter for one display name; operation 1 is EQUALS."""
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _only(found: list[Any] | None, name: str) -> Any:
    """The first of the objects that a filter by name found."""
    if not found:
        raise UserError(
            "the name is taken by an object that this account may not see",
            where="pipeline",
            value=name,
            remedy="give the recipe another name",
        )
    return found[0]


def _experiment(client: Any, settings: KubeflowSettings) -> str:
    return client.create_experiment(settings.experiment, namespace=settings.namespace or None).experiment_id


class _RetriableError(Exception):
    """The API did not answer this time; `user_error` is raised if that lasts too long."""

    def __init__(self, user_error: UserError) -> None:
        super().__init__(str(user_error))
        self.user_error = user_error


def _read(client: Any, run_id: str, settings: KubeflowSettings) -> Any:
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return client.runs.run_service_get_run(run_id=run_id, _request_timeout=CALL_SECONDS)
    except ApiException as error:
        if error.status and error.status < 500 and error.status != 429:
            raise_refusal(error.status, error_message(error), settings, f"read run {run_id}")
        raise _RetriableError(unreachable(settings, error)) from error
    except (HTTPError, OSError) as error:
        raise _RetriableError(unreachable(settings, error)) from error


def _tasks(run: Any) -> dict[str, tuple[str, str, str]]:
    """Task id -> (name, state, error). Kubeflow's own tasks (drivers, the root) are left out."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found: dict[str, tuple[str, str, str]] = {}
    for task in details:
        name = task.display_name or ""
        if name and name not in {"root", "executor"} and not name.endswith("-driver"):
            found[task.task_id] = (name, task.state or "PENDING", task.error.message if task.error else "")
    return found


def _result(run: Any, tasks: dict[str, tuple[str, str, str]], settings: KubeflowSettings) -> RunResult:
    """The result of a run that has ended.

    Raises:
        RunFailedError: it failed or was cancelled.
    """
    where = f"run {run.run_id}"
    if run.state == "CANCELED":
        raise RunFailedError(f"{where} was cancelled. Start it again: finished stages are reused.")
    if run.state == "FAILED":
        failed = [(name, error) for name, state, error in tasks.values() if state == "FAILED"]
        name, error = failed[0] if failed else ("", run.error.message if run.error else "")
        what = f"stage {name} failed" if name else "failed"
        cause = " ".join(error.split()).rstrip(".") or "no cause was given"
        raise RunFailedError(f"{where}: {what}: {cause}. Read the step's log at {settings.run_url(run.run_id)}.")
    return RunResult(run.run_id, run.state, {name: state for name, state, _ in tasks.values()})
