"""How a RayJob ended, read from its status, and what to say about it.

`Complete` alone is no success: a job that somebody stopped is `Complete` with `STOPPED`. `ValidationFailed` is an end,
although nothing has run. Source: ray.io/v1 RayJobStatus (KubeRay 1.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import UserError

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
