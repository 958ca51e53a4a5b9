"""Deletes the job when this process is told to end.

Kubeflow's "terminate" leaves a step about one second: its launcher dies at once, the pod's first process follows, and
the kernel kills what is left. So the deletion is the first thing that happens, on a connection that is already open, in
a thread that does not share a lock with the code that the signal interrupted.
"""

from __future__ import annotations

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

DELETE, END = b"d", b"e"
_APPEARING = (0.0, 0.2, 0.4, 0.8)
"""Pauses (s) before looking for a job whose creation was under way when the signal came."""


class Reaper:
    """A context in which SIGTERM and SIGINT delete one job before anything else happens.

    Handlers are installed only in the main thread; `delete` works everywhere.

    Args:
        api: with a connection pool of its own (`RayJobApi.apart`).
        name: of the RayJob.
        is_ours: whether a job of that name is this launcher's to delete; another pipeline's is not.
        show: takes a line.
    """

    def __init__(
        self, api: RayJobApi, name: str, is_ours: Callable[[dict[str, Any]], bool], show: Callable[[str], None]
    ) -> None:
        self._api, self._name, self._is_ours, self._show = api, name, is_ours, show
        self._uid = ""
        self._armed = True
        self._previous: dict[int, Any] = {}
        self._ear, self._mouth = os.pipe()
        self._thread = threading.Thread(target=self._wait, daemon=True, name=f"reaper of {name}")

    def __enter__(self) -> Reaper:
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._told)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._order(END)
        os.close(self._mouth)
        os.close(self._ear)

    def arm(self, uid: str) -> None:
        """From now on the job with this uid is the one to delete."""
        self._uid, self._armed = uid, True

    def disarm(self) -> None:
        """The job has succeeded, or it is another pipeline's: leave it alone."""
        self._armed = False

    def delete(self) -> None:
        """Deletes the job now, and waits for the API's answer. Does nothing when disarmed."""
        if self._armed:
            self._order(DELETE)

    def _order(self, order: bytes) -> None:
        # A pipe and a join: nothing here takes a lock that the interrupted main thread could hold.
        if self._thread.is_alive():
            os.write(self._mouth, order)
            self._thread.join()

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.delete()
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)
        else:
            raise SystemExit(128 + number)

    def _wait(self) -> None:
        while True:
            self._keep_warm()
            if select.select([self._ear], [], [], self._api.timing.warm_s)[0]:
                break
        if os.read(self._ear, 1) == DELETE:
            self._delete()

    def _keep_warm(self) -> None:
        try:
            self._api.find(self._name, patience=0)
        except UserError:
            return

    def _delete(self) -> None:
        try:
            gone = bool(self._uid) and self._api.delete(self._name, self._uid)
            if not self._uid:
                gone = self._delete_appearing()
        except UserError as error:
            self._show(f"RayJob {self._name} was not deleted: {error}")
            self._show(f"delete it by hand: kubectl -n {self._api.namespace} delete rayjob {self._name}")
        else:
            self._show(f"RayJob {self._name}: {'deleted' if gone else 'was gone already'}")

    def _delete_appearing(self) -> bool:
        """The same while the creation's answer is still out."""
        for pause in _APPEARING:
            time.sleep(pause)
            job, _ = self._api.find(self._name)
            if job and self._is_ours(job):
                return self._api.delete(self._name, job["metadata"]["uid"])
        return False
