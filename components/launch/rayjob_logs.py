"""Prints the log of a RayJob while it is written.

The submitter pod's log is the stage's own output. The pod starts minutes after the job, its log connection may break,
and a retry of the job has a new pod. None of that is an error here: only the job's status shows whether it succeeded.
"""

from __future__ import annotations

import logging
import threading

from components.errors import UserError
from components.launch.rayjob_client import RayJobApi

_LOGGER = logging.getLogger(__name__)


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
