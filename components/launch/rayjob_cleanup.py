"""Deletes the RayJob when this process receives SIGTERM or SIGINT.

Kubeflow's "terminate" leaves a step about one second: its launcher dies at once, the pod's first process follows, and
the kernel kills the rest. So the deletion is the first thing that happens, on a connection that is already open, in a
thread that shares no lock with the code that the signal interrupted.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi

_LOGGER = logging.getLogger(__name__)

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
