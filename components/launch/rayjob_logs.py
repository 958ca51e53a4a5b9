"""Prints the log of a job while it is written.

The submitter pod's log is the stage's own output. The pod comes minutes after the job, its log connection may break,
and a new try of the job gets a new pod: none of that is an error here, the job's status alone tells how it went.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi


class LogFollower(threading.Thread):
    """Follows the submitter pods of one job, one after the other.

    Args:
        api: with a connection pool of its own (`RayJobApi.apart`).
        name: of the RayJob; its submitter's pods carry `job-name=<name>`.
        show: takes each line, without its time.
    """

    def __init__(self, api: RayJobApi, name: str, show: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name=f"log of {name}")
        self._api, self._job, self._show = api, name, show
        self._ending = threading.Event()
        self._last: dict[str, str] = {}
        self._read: set[str] = set()
        self.last_line = ""

    def run(self) -> None:
        """Reads until the job has ended and every pod's log has been read to its end."""
        pause = self._api.timing.retry_s
        while True:
            ending = self._ending.is_set()
            try:
                self._turn()
            except UserError as error:
                self._show(f"the log is not available: {error}")
                return
            if ending:
                return
            self._ending.wait(pause)
            pause = min(2 * pause, 5.0)

    def finish(self) -> None:
        """The job has ended: gives the rest of the log `Timing.drain_s` to arrive."""
        self._ending.set()
        self.join(self._api.timing.drain_s)

    def _turn(self) -> None:
        for pod in self._api.pods(f"job-name={self._job}", patience=self._api.timing.outage_s):
            name, phase = pod.metadata.name, pod.status.phase
            if phase in {None, "Pending"} or name in self._read:
                continue
            if self._follow(name) and phase in {"Succeeded", "Failed"}:
                self._read.add(name)

    def _follow(self, pod: str) -> bool:
        """Prints what is new in the pod's log; False if the connection broke."""
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
                    self._take(pod, line.decode(errors="replace"))
            self._take(pod, rest.decode(errors="replace"))
        except (HTTPError, OSError):
            return False
        finally:
            response.close()
        return True

    def _take(self, pod: str, line: str) -> None:
        """Prints a line unless it came before the connection broke; `line` begins with its RFC 3339 time."""
        time, _, text = line.partition(" ")
        if not time:
            return
        # Without the Z, RFC 3339 times sort as text, however many digits of the second they give.
        moment = time.removesuffix("Z")
        if moment <= self._last.get(pod, ""):
            return
        self._last[pod] = moment
        if text.strip():
            self.last_line = text.strip()
        self._show(text)
