"""Runs one stage as a KubeRay RayJob: claim it by its name, follow it to its end, leave nothing behind.

The name is made from the stage and its fingerprint, so creating the job *is* the claim on the work: whoever gets a
conflict attaches to the job that is there. The result is not taken from the job; the stage writes it to MLflow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from components.errors import UserError
from components.launch.rayjob_cleanup import Reaper
from components.launch.rayjob_client import RayJobApi, connect
from components.launch.rayjob_logs import LogFollower
from components.launch.rayjob_monitor import CONTINUES, Ended, Health, failure, follow, outcome
from components.launch.rayjob_settings import RayJobSettings, Resources, Timing
from components.launch.rayjob_spec import RUN_LABEL, job_name, label_value, render

__all__ = [
    "RUN_LABEL",
    "RayJobSettings",
    "Resources",
    "Timing",
    "cancel",
    "job_name",
    "label_value",
    "launch",
    "render",
]

MAX_CLAIMS = 3
"""Another pipeline's job that we attached to may be deleted under us; then the claim is made anew."""


def show(line: str) -> None:
    """Prints a line at once: a step's output is a pipe."""
    print(line, flush=True)


def launch(
    spec_json: str,
    *,
    stage: str,
    kind: str,
    room: str,
    fingerprint: str,
    resources: Resources,
    settings: RayJobSettings,
    api: Any = None,
) -> None:
    """Runs the stage and returns when its job has succeeded.

    A failed job is deleted before this raises; a succeeded one is left to its time to live. SIGTERM and SIGINT delete
    the job first and then do what they did before.

    Args:
        spec_json: the stage's specification, handed over in `ROBUSTRAIN_SPEC`.
        stage: its name in the recipe.
        kind: its kind in the stage table.
        room: the package under `components` whose `__main__` runs it.
        fingerprint: of the stage, hex.
        resources: what it needs.
        settings: of the installation.
        api: a `kubernetes.client.ApiClient`; by default the cluster that the environment names.

    Raises:
        UserError: the job could not be created, did not start, failed, was stopped or deleted, or the cluster stayed
            out of reach. One line with the remedy.
    """
    body = render(
        spec_json,
        stage=stage,
        kind=kind,
        room=room,
        fingerprint=fingerprint,
        resources=resources,
        settings=settings,
    )
    calls = RayJobApi(api or connect(), settings.namespace, settings.timing)
    name = body["metadata"]["name"]

    def is_ours(job: dict[str, Any]) -> bool:
        return _owner(job) == _owner(body)

    with Reaper(calls.apart(), name, is_ours, show) as reaper:
        try:
            for _ in range(MAX_CLAIMS):
                job, ours = _claim(calls, body, is_ours)
                reaper.arm(job["metadata"]["uid"]) if ours else reaper.disarm()
                if _run_to_end(calls, job, ours=ours):
                    reaper.disarm()
                    return
            raise UserError(
                f"was deleted {MAX_CLAIMS} times by its owner while this pipeline waited for it",
                where=f"RayJob {name}",
                remedy="start the pipeline again",
            )
        except BaseException:
            reaper.delete()
            raise


def cancel(run_id: str, *, settings: RayJobSettings, api: Any = None) -> list[str]:
    """Deletes every job of a pipeline run and returns their names.

    Kubeflow's "terminate" does not wait for a step to clean up, so this is what makes sure of it.

    Raises:
        UserError: the cluster is out of reach or refuses.
    """
    calls = RayJobApi(api or connect(), settings.namespace, settings.timing)
    jobs = [job["metadata"] for job in calls.labelled(RUN_LABEL, label_value(run_id))]
    return [job["name"] for job in jobs if calls.delete(job["name"], job["uid"])]


def _claim(
    calls: RayJobApi, body: dict[str, Any], is_ours: Callable[[dict[str, Any]], bool]
) -> tuple[dict[str, Any], bool]:
    """The job to follow, and whether it is this pipeline's (created now, or by an earlier try of the same step)."""
    name = body["metadata"]["name"]
    end = time.monotonic() + calls.timing.gone_s
    while time.monotonic() < end:
        created = calls.create(body)
        if created is not None:
            show(f"RayJob {name}: created")
            return created, True
        there, _ = calls.find(name)
        if there is None:
            continue
        leaving = there["metadata"].get("deletionTimestamp")
        if not leaving and outcome(there.get("status")) is None:
            show(f"RayJob {name}: exists, attached to it")
            return there, is_ours(there)
        if not leaving:
            # The stage would not have been launched if MLflow had its result: an ended job of this name is a past try.
            show(f"RayJob {name}: an ended one is in the way, deleting it")
            calls.delete(name, there["metadata"]["uid"])
        time.sleep(calls.timing.retry_s)
    raise UserError(
        f"an ended job of this name has not gone within {calls.timing.gone_s:g} s",
        where=f"RayJob {name}",
        remedy="check that the KubeRay operator runs: it has to remove the job's finalizer",
    )


def _run_to_end(calls: RayJobApi, job: dict[str, Any], *, ours: bool) -> bool:
    """True when the job succeeded, False when it is another pipeline's and was deleted.

    Raises:
        UserError: it ended in any other way.
    """
    name = job["metadata"]["name"]
    with _printed_log(calls, name) as log:
        ended: Ended = follow(calls, job, Health(name, calls.timing, show), show)
    if ended.outcome is None:
        if not ours:
            return False
        raise UserError("was deleted while it ran", where=f"RayJob {name}", remedy=CONTINUES)
    if not ended.outcome.succeeded:
        raise failure(name, ended.outcome, last_line=log.last_line)
    return True


@contextlib.contextmanager
def _printed_log(calls: RayJobApi, name: str) -> Iterator[LogFollower]:
    log = LogFollower(calls.apart(), name, show)
    log.start()
    yield log
    # Not in a `finally`: after a signal or a fault nobody waits for the rest of the log.
    log.finish()


def _owner(job: dict[str, Any]) -> tuple[str, str]:
    """(pipeline run, owning pod) of a job; the same run's earlier try counts as the same owner."""
    metadata = job["metadata"]
    run = (metadata.get("labels") or {}).get(RUN_LABEL, "")
    owners = metadata.get("ownerReferences") or [{}]
    return (run, "") if run else ("", owners[0].get("uid", ""))
