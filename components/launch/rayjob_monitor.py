"""Follows one RayJob to its end: its status, its log, its pods that cannot start, and a bad end as one line.

`follow` survives lost watches and a restart of the API server. `PodMonitor` finds faults that keep a job's pods from
starting: neither KubeRay nor the RayJob's status reports an image that cannot be pulled, the pods just wait until the
deadline. `JobResult` is read from the job's status. `Complete` alone is no success: a job that somebody stopped is
`Complete` with `STOPPED`. `ValidationFailed` is an end although nothing has run. `LogFollower` prints the submitter
pod's log, which is the stage's own output. That pod starts minutes after the job, its log connection may break, and a
retry of the job has a new pod. None of that is an error here: only the job's status shows whether it succeeded.

Source: ray.io/v1 RayJobStatus (KubeRay 1.7).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi
from components.launch.rayjob_settings import RayJobSettings
from components.launch.rayjob_spec import JOB_LABEL

_LOGGER = logging.getLogger(__name__)

END_STATES = frozenset({"Complete", "Failed", "ValidationFailed"})
"""Values of `jobDeploymentStatus` after which KubeRay does nothing more with the job."""
IMAGE_FAULTS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
"""Waiting reasons of a container whose image cannot be pulled."""
CONFIG_FAULTS = frozenset({"CreateContainerConfigError"})
"""Waiting reasons of a container that names a ConfigMap or a Secret that does not exist."""

START_AGAIN = "start the pipeline again: the stage continues from its last complete checkpoint"


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        deployment_status: KubeRay's view, one of `END_STATES`.
        job_status: Ray's view, such as `SUCCEEDED`; may be empty.
        reason: KubeRay's reason, one word.
        message: KubeRay's message, up to 20,000 characters of the job's log.
    """

    deployment_status: str
    job_status: str
    reason: str = ""
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether both KubeRay and Ray report success."""
        return self.deployment_status == "Complete" and self.job_status == "SUCCEEDED"


def job_result(status: Mapping[str, Any] | None) -> JobResult | None:
    """The result in a job's status, or None while the job waits or runs."""
    status = status or {}
    deployment = status.get("jobDeploymentStatus", "")
    if deployment not in END_STATES:
        return None
    return JobResult(deployment, status.get("jobStatus", ""), status.get("reason", ""), status.get("message", ""))


def status_text(status: Mapping[str, Any] | None) -> str:
    """Status text for the log, such as `Running/PENDING`; `new` until KubeRay has set a status."""
    status = status or {}
    words = [status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")]
    return "/".join(word for word in words if word) or "new"


def follow(api: RayJobApi, job: dict[str, Any], settings: RayJobSettings) -> JobResult | None:
    """Waits for the job's end. Returns its result, or None if the job was deleted.

    Each turn reads the job again, then watches from there for a limited time. So a watch that expires (410), times out
    or breaks costs only its turn, and a change between two watches is not missed.

    Args:
        api: the cluster.
        job: as it was created or found; another job of the same name (other uid) means that this one was deleted.
        settings: of the installation.

    Raises:
        UserError: the pods cannot start, or the cluster is unreachable for `Timing.outage_s`.
    """
    name, uid, shown = job["metadata"]["name"], job["metadata"]["uid"], ""
    monitor = PodMonitor(name, settings)
    while True:
        now, version = api.find(name, patience=api.timing.outage_s)
        if now is None or now["metadata"]["uid"] != uid:
            return None
        shown = _log_change(name, now, shown)
        if result := job_result(now.get("status")):
            return result
        running = (now.get("status") or {}).get("jobStatus") == "RUNNING"
        if not running:
            monitor.check_operator(now)
            monitor.check_pods(api.pods(f"{JOB_LABEL}={name}", patience=api.timing.outage_s))
        # Faults of the pods do not show in the job's status: until it runs, look often.
        seconds = api.timing.watch_s if running else max(1, api.timing.watch_s // 3)
        for event, now in api.watch(name, version, seconds):
            if event == "DELETED":
                return None
            shown = _log_change(name, now, shown)
            if result := job_result(now.get("status")):
                return result


def _log_change(name: str, job: dict[str, Any], shown: str) -> str:
    """Logs the job's status if it differs from `shown`; returns it."""
    text = status_text(job.get("status"))
    if text != shown:
        _LOGGER.info("RayJob %s: %s", name, text)
    return text


class PodMonitor:
    """Checks one job and its pods until the job runs.

    Args:
        name: of the RayJob.
        settings: gives the time for which a fault may last.
        clock: seconds, monotonic.
    """

    def __init__(self, name: str, settings: RayJobSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._image_grace_s, self._operator_grace_s = settings.image_grace_s, settings.timing.operator_grace_s
        self._start = clock()
        self._since: dict[tuple[str, str], float] = {}
        self._waiting = ""

    def check_operator(self, job: dict[str, Any]) -> None:
        """Checks that KubeRay has seen the job, unless it is suspended (a queue suspends jobs).

        Raises:
            UserError: the job has had no status for too long.
        """
        if job.get("status") or job["spec"].get("suspend"):
            self._start = self._clock()
        elif self._clock() - self._start > self._operator_grace_s:
            raise UserError(
                f"KubeRay has not set its status for {self._operator_grace_s:g} s",
                where=f"RayJob {self._name}",
                remedy="check that the KubeRay operator runs and watches this namespace",
            )

    def check_pods(self, pods: Iterable[Any]) -> None:
        """Checks that no container has been unable to start for longer than the grace time.

        Args:
            pods: `V1Pod` of the job, submitter included.

        Raises:
            UserError: names the image, or contains the cluster's message about the configuration.
        """
        pods, now = list(pods), self._clock()
        faults = {(pod, container): fault for pod, container, fault in _faults(pods)}
        self._since = {key: self._since.get(key, now) for key in faults}
        for key, (reason, image, message) in faults.items():
            if now - self._since[key] >= self._image_grace_s or reason == "InvalidImageName":
                raise _fault_error(self._name, reason, image, message)
        self._log_waiting(pods, faults)

    def _log_waiting(self, pods: list[Any], faults: dict[Any, tuple[str, str, str]]) -> None:
        """Logs what the pods wait for, when it changes."""
        causes = [f"{image}: {reason}" for reason, image, _ in faults.values()]
        causes += [f"no node for {pod.metadata.name}: {why}" for pod in pods if (why := _unscheduled(pod))]
        text = "; ".join(sorted(set(causes)))
        if text and text != self._waiting:
            _LOGGER.info("RayJob %s: waiting: %s", self._name, text)
        self._waiting = text


def _faults(pods: list[Any]) -> Iterator[tuple[str, str, tuple[str, str, str]]]:
    """(pod, container, (reason, image, message)) of every container that cannot start."""
    for pod in pods:
        statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
        for status in statuses:
            waiting = status.state.waiting if status.state else None
            if waiting and waiting.reason in IMAGE_FAULTS | CONFIG_FAULTS:
                # ErrImagePull and ImagePullBackOff alternate; pod and container stay the same.
                yield pod.metadata.name, status.name, (waiting.reason, status.image, waiting.message or "")


def _fault_error(name: str, reason: str, image: str, message: str) -> UserError:
    where, text = f"RayJob {name}", " ".join(message.split())[:300].rstrip(".")
    if reason in CONFIG_FAULTS:
        return UserError(
            f"its containers cannot be configured: {text or reason}",
            where=where,
            remedy="create what it names, see k8s/base",
        )
    return UserError(
        f"the image cannot be pulled ({reason}: {text})" if text else f"the image cannot be pulled ({reason})",
        where=where,
        value=image,
        remedy="push it, correct ROBUSTRAIN_IMAGE, or name a pull secret in ROBUSTRAIN_PULL_SECRETS",
    )


def _unscheduled(pod: Any) -> str:
    """Why no node takes the pod; empty if it has a node."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return " ".join((condition.message or condition.reason or "").split())[:200]
    return ""


def failure(name: str, result: JobResult, *, last_line: str = "") -> UserError:
    """The error for a job that did not succeed.

    Args:
        name: of the RayJob.
        result: with `succeeded` false.
        last_line: the last line of the job's log; empty if none was received.
    """
    cause = _last_line(result.message) or last_line or result.reason or "no cause was given"
    where = f"RayJob {name}"
    if result.deployment_status == "ValidationFailed":
        return UserError(f"KubeRay refused it: {cause}", where=where, remedy="correct the value that it names")
    if result.reason in {"DeadlineExceeded", "PreRunningDeadlineExceeded"}:
        remedy = f"raise the deadline, then {START_AGAIN}"
        return UserError("did not end before its deadline", where=where, remedy=remedy)
    if result.reason == "SubmissionFailed":
        return UserError(
            f"could not be submitted to Ray: {cause}",
            where=where,
            remedy="check that the training image has ray[default] in the version that the job names",
        )
    if result.job_status == "STOPPED":
        return UserError("was stopped before it ended", where=where, remedy=START_AGAIN)
    if last_line.startswith("error: "):
        cause = last_line.removeprefix("error: ").rstrip(".")
    return UserError(
        f"ended as {result.deployment_status}/{result.job_status or 'unknown'}: {cause}",
        where=where,
        remedy="read the stage's log above",
    )


def _last_line(message: str) -> str:
    """The last line of a message that is not empty, at most 400 characters."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:400].rstrip(".") if lines else ""


class LogFollower(threading.Thread):
    """Prints the logs of one job's submitter pods to standard output, one pod after the other.

    Args:
        api: with a connection pool of its own (`RayJobApi.with_own_connections`).
        name: of the RayJob; its submitter pods have the label `job-name=<name>`.
    """

    def __init__(self, api: RayJobApi, name: str) -> None:
        super().__init__(daemon=True, name=f"log of {name}")
        self._api, self._job = api, name
        self._job_ended = threading.Event()
        self._last_times: dict[str, str] = {}
        self._complete: set[str] = set()
        self.last_line = ""

    def run(self) -> None:
        """Reads until the job has ended and every pod's log has been read to its end."""
        pause = self._api.timing.retry_s
        while True:
            job_ended = self._job_ended.is_set()
            try:
                self._read_pods()
            except UserError as error:
                _LOGGER.warning("the log of RayJob %s is not available: %s", self._job, error)
                return
            if job_ended:
                return
            self._job_ended.wait(pause)
            pause = min(2 * pause, 5.0)

    def finish(self) -> None:
        """Waits at most `Timing.drain_s` for the rest of the log. Called when the job has ended."""
        self._job_ended.set()
        self.join(self._api.timing.drain_s)

    def _read_pods(self) -> None:
        for pod in self._api.pods(f"job-name={self._job}", patience=self._api.timing.outage_s):
            name, phase = pod.metadata.name, pod.status.phase
            if phase in {None, "Pending"} or name in self._complete:
                continue
            if self._follow(name) and phase in {"Succeeded", "Failed"}:
                self._complete.add(name)

    def _follow(self, pod: str) -> bool:
        """Prints the new lines of the pod's log; returns False if the connection broke."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        try:
            response = self._api.log(pod)
        except (client.ApiException, HTTPError, OSError):
            return False
        rest = b""
        try:
            for chunk in response.stream(amt=None, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._print_new(pod, line.decode(errors="replace"))
            self._print_new(pod, rest.decode(errors="replace"))
        except (HTTPError, OSError):
            return False
        finally:
            response.close()
        return True

    def _print_new(self, pod: str, line: str) -> None:
        """Prints a line unless it was printed before the connection broke; `line` begins with its RFC 3339 time."""
        time, _, text = line.partition(" ")
        if not time:
            return
        # Without the Z, RFC 3339 times sort as text, no matter how many digits of the second they have.
        moment = time.removesuffix("Z")
        if moment <= self._last_times.get(pod, ""):
            return
        self._last_times[pod] = moment
        if text.strip():
            self.last_line = text.strip()
        # At once: a step's standard output is a pipe.
        print(text, flush=True)
