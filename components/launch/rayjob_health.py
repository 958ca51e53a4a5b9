"""Faults that keep a job's pods from ever starting, found before its deadline wastes a day.

Neither KubeRay nor the RayJob's status tells of an image that cannot be pulled: the pods just wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from components.errors import UserError
from components.launch.rayjob_settings import Timing

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
