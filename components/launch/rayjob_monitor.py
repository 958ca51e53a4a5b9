"""Follows one RayJob to its end, through lost watches and a restarting API server.

Faults that keep a job's pods from ever starting, found before its deadline wastes a day.

Neither KubeRay nor the RayJob's status tells of an image that cannot be pulled: the pods just wait.

How a RayJob ended, read from its status, and what to say about it.

`Complete` alone is no success: a job that somebody stopped is `Complete` with `STOPPED`. `ValidationFailed` is an end,
although nothing has run. Source: ray.io/v1 RayJobStatus (KubeRay 1.7).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi
from components.launch.rayjob_settings import Timing
from components.launch.rayjob_spec import JOB_LABEL

# MERGED
# MERGED


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


IMAGE_FAULTS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
"""Waiting reasons of a container whose image does not arrive."""
CONFIG_FAULTS = frozenset({"CreateContainerConfigError"})
"""Waiting reasons of a container that names a ConfigMap or a Secret that does not exist."""


class Health:
    """Watches over one job until it runs.

    Args:
        name: of the RayJob.
        timing: how long a fault may last.
        show: takes a line when what the pods wait for changes.
        clock: seconds, monotonic.
    """

    def __init__(
        self, name: str, timing: Timing, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._timing, self._show, self._clock = name, timing, show, clock
        self._born = clock()
        self._since: dict[tuple[str, str], float] = {}
        self._waiting = ""

    def check_taken(self, job: dict[str, Any]) -> None:
        """Raises when KubeRay has not taken notice of a job that is not suspended (a queue suspends jobs).

        Raises:
            UserError: nothing has filled in the job's status for too long.
        """
        if job.get("status") or job["spec"].get("suspend"):
            self._born = self._clock()
        elif self._clock() - self._born > self._timing.operator_grace_s:
            raise UserError(
                f"KubeRay has taken no notice of it for {self._timing.operator_grace_s:g} s",
                where=f"RayJob {self._name}",
                remedy="check that the KubeRay operator runs and watches this namespace",
            )

    def check_pods(self, pods: Iterable[Any]) -> None:
        """Raises when a container has been kept from starting for longer than the grace time.

        Args:
            pods: `V1Pod` of the job, submitter included.

        Raises:
            UserError: names the image, or what the cluster says about the configuration.
        """
        pods, now = list(pods), self._clock()
        faults = {(pod, container): fault for pod, container, fault in _faults(pods)}
        self._since = {key: self._since.get(key, now) for key in faults}
        for key, (reason, image, message) in faults.items():
            if now - self._since[key] >= self._timing.image_grace_s or reason == "InvalidImageName":
                raise _fault(self._name, reason, image, message)
        self._tell(pods, faults)

    def _tell(self, pods: list[Any], faults: dict[Any, tuple[str, str, str]]) -> None:
        words = [f"{image}: {reason}" for reason, image, _ in faults.values()]
        words += [f"no node for {pod.metadata.name}: {why}" for pod in pods if (why := _unscheduled(pod))]
        text = "; ".join(sorted(set(words)))
        if text and text != self._waiting:
            self._show(f"waiting: {text}")
        self._waiting = text


def _faults(pods: list[Any]) -> Iterator[tuple[str, str, tuple[str, str, str]]]:
    """(pod, container, (reason, image, message)) of every container that cannot start."""
    for pod in pods:
        statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
        for status in statuses:
            waiting = status.state.waiting if status.state else None
            if waiting and waiting.reason in IMAGE_FAULTS | CONFIG_FAULTS:
                # ErrImagePull and ImagePullBackOff take turns; the pod and the container are what stays.
                yield pod.metadata.name, status.name, (waiting.reason, status.image, waiting.message or "")


def _fault(name: str, reason: str, image: str, message: str) -> UserError:
    where, said = f"RayJob {name}", " ".join(message.split())[:300].rstrip(".")
    if reason in CONFIG_FAULTS:
        return UserError(
            f"its containers cannot be configured: {said or reason}",
            where=where,
            remedy="create what it names, see k8s/base",
        )
    return UserError(
        f"the image cannot be pulled ({reason}: {said})" if said else f"the image cannot be pulled ({reason})",
        where=where,
        value=image,
        remedy="push it, correct ROBUSTRAIN_IMAGE, or name a pull secret in ROBUSTRAIN_PULL_SECRETS",
    )


def _unscheduled(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return " ".join((condition.message or condition.reason or "").split())[:200]
    return ""


ENDS = frozenset({"Complete", "Failed", "ValidationFailed"})
"""Values of `jobDeploymentStatus` after which KubeRay does nothing more with the job."""

CONTINUES = "start the pipeline again: the stage continues from its last complete checkpoint"


@dataclass(frozen=True)
class Outcome:
    """The end of a job: `deployment` is KubeRay's view, `job` is Ray's, `reason` and `message` are KubeRay's words."""

    deployment: str
    job: str
    reason: str = ""
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Both KubeRay and Ray say so."""
        return self.deployment == "Complete" and self.job == "SUCCEEDED"


def outcome(status: Mapping[str, Any] | None) -> Outcome | None:
    """The end that this status tells, or None while the job waits or runs."""
    status = status or {}
    deployment = status.get("jobDeploymentStatus", "")
    if deployment not in ENDS:
        return None
    return Outcome(deployment, status.get("jobStatus", ""), status.get("reason", ""), status.get("message", ""))


def stage_of_life(status: Mapping[str, Any] | None) -> str:
    """A short word for people: `Running/PENDING`, or `new` before KubeRay has seen the job."""
    status = status or {}
    words = [status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")]
    return "/".join(word for word in words if word) or "new"


def failure(name: str, ended: Outcome, *, last_line: str = "") -> UserError:
    """The one line for a job that did not succeed.

    Args:
        name: of the RayJob.
        ended: an outcome with `succeeded` false.
        last_line: the last line of the job's log, empty when none arrived.
    """
    cause = _cause(ended.message) or last_line or ended.reason or "no cause was given"
    where = f"RayJob {name}"
    if ended.deployment == "ValidationFailed":
        return UserError(f"KubeRay refused it: {cause}", where=where, remedy="correct the value that it names")
    if ended.reason in {"DeadlineExceeded", "PreRunningDeadlineExceeded"}:
        return UserError("did not end before its deadline", where=where, remedy=f"raise the deadline, then {CONTINUES}")
    if ended.reason == "SubmissionFailed":
        return UserError(
            f"could not be handed to Ray: {cause}",
            where=where,
            remedy="check that the training image has ray[default] in the version that the job names",
        )
    if ended.job == "STOPPED":
        return UserError("was stopped before it ended", where=where, remedy=CONTINUES)
    if last_line.startswith("error: "):
        cause = last_line.removeprefix("error: ").rstrip(".")
    return UserError(
        f"ended as {ended.deployment}/{ended.job or 'unknown'}: {cause}",
        where=where,
        remedy="the stage's log above tells what went before",
    )


def _cause(message: str) -> str:
    """The last line of a message that says something; KubeRay puts up to 20,000 characters of the job's log into it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:400].rstrip(".") if lines else ""
