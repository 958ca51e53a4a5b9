"""Follows one RayJob to its end, through lost watches and a restarting API server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.launch.rayjob_api import RayJobApi
from components.launch.rayjob_health import Health
from components.launch.rayjob_manifest import JOB_LABEL
from components.launch.rayjob_outcome import Outcome, outcome, stage_of_life


@dataclass(frozen=True)
class Ended:
    """`outcome` is None when the job was deleted before it ended."""

    outcome: Outcome | None


def follow(api: RayJobApi, job: dict[str, Any], health: Health, show: Callable[[str], None]) -> Ended:
    """Waits for the job's end.

    Each turn reads the job anew, then watches from there for a bounded time. So a watch that expires (410), times out
    or breaks costs nothing but its turn, and a change that fell between two watches is not missed.

    Args:
        api: the cluster.
        job: as it was created or found; another job of the same name (other uid) counts as this one's deletion.
        health: asked at every turn until the job runs.
        show: takes a line at every change of state.

    Raises:
        UserError: the pods cannot start, or the cluster stays out of reach for `Timing.outage_s`.
    """
    name, uid, told = job["metadata"]["name"], job["metadata"]["uid"], ""
    while True:
        now, version = api.find(name, patience=api.timing.outage_s)
        if now is None or now["metadata"]["uid"] != uid:
            return Ended(None)
        told = _tell(name, now, told, show)
        if ended := outcome(now.get("status")):
            return Ended(ended)
        running = (now.get("status") or {}).get("jobStatus") == "RUNNING"
        if not running:
            health.check_taken(now)
            health.check_pods(api.pods(f"{JOB_LABEL}={name}", patience=api.timing.outage_s))
        # Faults of the pods do not show in the job: while it has not started, look often.
        seconds = api.timing.watch_s if running else max(1, api.timing.watch_s // 3)
        for event, now in api.watch(name, version, seconds):
            if event == "DELETED":
                return Ended(None)
            told = _tell(name, now, told, show)
            if ended := outcome(now.get("status")):
                return Ended(ended)


def _tell(name: str, job: dict[str, Any], told: str, show: Callable[[str], None]) -> str:
    state = stage_of_life(job.get("status"))
    if state != told:
        show(f"RayJob {name}: {state}")
    return state
