"""Runs one stage as a KubeRay RayJob: creates it or attaches to it, follows it to its end, cleans up.

The job's name is made from the stage and its fingerprint, so creating the job *is* the claim on the work: a launcher
that gets a conflict attaches to the existing job. The result is not taken from the job; the stage writes it to MLflow.

`DeleteOnSignal` deletes the job when this process receives SIGTERM or SIGINT. Kubeflow's "terminate" leaves a step
about one second: its launcher dies at once, the pod's first process follows, and the kernel kills the rest. So the
deletion is the first thing that happens, on a connection that is already open, in a thread that shares no lock with the
code that the signal interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi, connect
from components.launch.rayjob_monitor import START_AGAIN, LogFollower, failure, follow, job_result
from components.launch.rayjob_settings import RayJobSettings, Timing
from components.launch.rayjob_spec import RUN_LABEL, job_name, label_value, render
from components.launch.resources import Resources

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

_LOGGER = logging.getLogger(__name__)

MAX_CLAIMS = 3
"""Another pipeline's job that we attached to may be deleted while we wait for it; then the job is claimed again."""


def launch(
    spec_json: str,
    *,
    stage: str,
    kind: str,
    package: str,
    fingerprint: str,
    resources: Resources,
    settings: RayJobSettings,
    api: Any = None,
) -> None:
    """Runs the stage and returns when its job has succeeded.

    A failed job is deleted before this raises. A succeeded one stays; KubeRay deletes its pods after `ttl_s`.
    SIGTERM and SIGINT delete the job before their previous handlers run.

    Args:
        spec_json: the stage's specification, passed in `ROBUSTRAIN_SPEC`.
        stage: its name in the recipe.
        kind: its kind in the stage table.
        package: the package under `components` whose `__main__` runs it.
        fingerprint: of the stage, hex.
        resources: what the stage needs.
        settings: of the installation.
        api: a `kubernetes.client.ApiClient`; by default for the cluster that the environment names.

    Raises:
        UserError: the job could not be created, did not start, failed, was stopped or deleted, or the cluster was
            unreachable for too long. One line with the remedy.
    """
    body = render(
        spec_json,
        stage=stage,
        kind=kind,
        package=package,
        fingerprint=fingerprint,
        resources=resources,
        settings=settings,
    )
    calls = RayJobApi(api or connect(), settings.namespace, settings.timing)
    is_ours = functools.partial(_same_owner, body)
    with DeleteOnSignal(calls.with_own_connections(), body["metadata"]["name"], is_ours) as cleanup:
        try:
            _run(calls, body, settings, cleanup)
        except BaseException:
            cleanup.delete()
            raise


def cancel(run_id: str, *, namespace: str, timing: Timing | None = None, api: Any = None) -> list[str]:
    """Deletes every job of a pipeline run and returns their names.

    Kubeflow's "terminate" does not wait for a step to clean up, so this makes sure that no job is left.

    Args:
        run_id: Kubeflow's id of the run.
        namespace: of the jobs.
        timing: pauses and time limits.
        api: a `kubernetes.client.ApiClient`; by default for the cluster that the environment names.

    Raises:
        UserError: the cluster is unreachable or refuses.
    """
    calls = RayJobApi(api or connect(), namespace, timing or Timing())
    jobs = [job["metadata"] for job in calls.find_by_label(RUN_LABEL, label_value(run_id))]
    return [job["name"] for job in jobs if calls.delete(job["name"], job["uid"])]


def _run(calls: RayJobApi, body: dict[str, Any], settings: RayJobSettings, cleanup: DeleteOnSignal) -> None:
    """Claims the job and follows it, again if it is another pipeline's and was deleted.

    Raises:
        UserError: the job did not succeed.
    """
    for _ in range(MAX_CLAIMS):
        job, ours = _claim(calls, body)
        cleanup.watch(job["metadata"]["uid"]) if ours else cleanup.release()
        if _run_to_end(calls, job, settings, ours=ours):
            cleanup.release()
            return
    raise UserError(
        f"was deleted {MAX_CLAIMS} times by its owner while this pipeline waited for it",
        where=f"RayJob {body['metadata']['name']}",
        remedy="start the pipeline again",
    )


def _claim(calls: RayJobApi, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The job to follow, and whether it is this pipeline's (created now, or by an earlier try of the same step)."""
    name = body["metadata"]["name"]
    end = time.monotonic() + calls.timing.gone_s
    while time.monotonic() < end:
        created = calls.create(body)
        if created is not None:
            _LOGGER.info("RayJob %s: created", name)
            return created, True
        existing, _ = calls.find(name)
        if existing is None:
            continue
        deleting = existing["metadata"].get("deletionTimestamp")
        if not deleting and job_result(existing.get("status")) is None:
            _LOGGER.info("RayJob %s: exists, attached to it", name)
            return existing, _same_owner(body, existing)
        if not deleting:
            # A complete result in MLflow would have been reused: an ended job of this name is an earlier failed try.
            _LOGGER.info("RayJob %s: deleting an ended job of this name", name)
            calls.delete(name, existing["metadata"]["uid"])
        time.sleep(calls.timing.retry_s)
    raise UserError(
        f"an ended job of this name still exists {calls.timing.gone_s:g} s after its deletion",
        where=f"RayJob {name}",
        remedy="check that the KubeRay operator runs: it has to remove the job's finalizer",
    )


def _run_to_end(calls: RayJobApi, job: dict[str, Any], settings: RayJobSettings, *, ours: bool) -> bool:
    """Follows the job. Returns True if it succeeded, False if it is another pipeline's and was deleted.

    Raises:
        UserError: it ended in any other way.
    """
    name = job["metadata"]["name"]
    with _printed_log(calls, name) as log:
        result = follow(calls, job, settings)
    if result is None:
        if not ours:
            return False
        raise UserError("was deleted while it ran", where=f"RayJob {name}", remedy=START_AGAIN)
    if not result.succeeded:
        raise failure(name, result, last_line=log.last_line)
    return True


@contextlib.contextmanager
def _printed_log(calls: RayJobApi, name: str) -> Iterator[LogFollower]:
    """Prints the job's log in a thread."""
    log = LogFollower(calls.with_own_connections(), name)
    log.start()
    yield log
    # Not in a `finally`: after a signal or an error nobody waits for the rest of the log.
    log.finish()


def _same_owner(body: dict[str, Any], job: dict[str, Any]) -> bool:
    """Whether a job belongs to the owner of the one that we create."""
    return _owner(job) == _owner(body)


def _owner(job: dict[str, Any]) -> tuple[str, str]:
    """(pipeline run, owning pod) of a job; an earlier try of the same run counts as the same owner."""
    metadata = job["metadata"]
    run = (metadata.get("labels") or {}).get(RUN_LABEL, "")
    owners = metadata.get("ownerReferences") or [{}]
    return (run, "") if run else ("", owners[0].get("uid", ""))


DELETE, END = b"d", b"e"
_SEARCH_PAUSES = (0.0, 0.2, 0.4, 0.8)
"""Pauses (s) before each search for a job whose creation was in progress when the signal came."""


class DeleteOnSignal:
    """A context in which SIGTERM and SIGINT delete one RayJob before the previous signal handler runs.

    Handlers are installed only in the main thread; `delete` works in every thread.

    Args:
        api: with a connection pool of its own (`RayJobApi.with_own_connections`).
        name: of the RayJob.
        is_ours: whether a job of that name may be deleted by this launcher; another pipeline's may not.
    """

    def __init__(self, api: RayJobApi, name: str, is_ours: Callable[[dict[str, Any]], bool]) -> None:
        self._api, self._name, self._is_ours = api, name, is_ours
        self._uid = ""
        self._active = True
        self._report: tuple[int, str] = (logging.INFO, "")
        self._previous: dict[int, Any] = {}
        self._read_fd, self._write_fd = os.pipe()
        self._thread = threading.Thread(target=self._wait, daemon=True, name=f"deletion of {name}")

    def __enter__(self) -> DeleteOnSignal:
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._send(END)
        os.close(self._write_fd)
        os.close(self._read_fd)

    def watch(self, uid: str) -> None:
        """Makes the job with this uid the one to delete."""
        self._uid, self._active = uid, True

    def release(self) -> None:
        """Deletes nothing from now on: the job has succeeded, or it belongs to another pipeline."""
        self._active = False

    def delete(self) -> None:
        """Deletes the job and waits for the API's answer. Does nothing after `release`."""
        if self._active:
            self._send(DELETE)
            self._log_report()

    def _send(self, command: bytes) -> None:
        # A pipe and a join: nothing here takes a lock that the interrupted main thread could hold.
        if self._thread.is_alive():
            os.write(self._write_fd, command)
            self._thread.join()

    def _log_report(self) -> None:
        # Not in the deleting thread: the main thread may have been interrupted inside `logging`, holding its lock.
        (level, text), self._report = self._report, (logging.INFO, "")
        if text:
            _LOGGER.log(level, text)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.delete()
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)
        else:
            raise SystemExit(128 + number)

    def _wait(self) -> None:
        """Runs in the thread: keeps the connection open until a command comes, then carries it out."""
        while True:
            self._keep_alive()
            if select.select([self._read_fd], [], [], self._api.timing.keep_alive_s)[0]:
                break
        if os.read(self._read_fd, 1) == DELETE:
            self._report = self._delete()

    def _keep_alive(self) -> None:
        try:
            self._api.find(self._name, patience=0)
        except UserError:
            return

    def _delete(self) -> tuple[int, str]:
        """Deletes the job. Returns the level and the text of the log line about it."""
        try:
            deleted = self._api.delete(self._name, self._uid) if self._uid else self._delete_new_job()
        except UserError as error:
            remedy = f"delete it by hand: kubectl -n {self._api.namespace} delete rayjob {self._name}"
            return logging.ERROR, f"RayJob {self._name} was not deleted: {error} {remedy}"
        return logging.INFO, f"RayJob {self._name}: {'deleted' if deleted else 'did not exist any more'}"

    def _delete_new_job(self) -> bool:
        """Deletes a job whose creation has not been answered yet, if it appears and is ours."""
        for pause in _SEARCH_PAUSES:
            time.sleep(pause)
            job, _ = self._api.find(self._name)
            if job and self._is_ours(job):
                return self._api.delete(self._name, job["metadata"]["uid"])
        return False
