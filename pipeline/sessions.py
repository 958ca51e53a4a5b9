"""Every process that a run has started: found by its process session, ended in time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

GRACE_SECONDS = 3.0
"""How long the processes have to end by themselves before they are killed."""


def end_session(leader: int) -> None:
    """SIGTERM to every process of the session that `leader` leads, SIGKILL to those left after the grace time.

    By session, not by process group: a Ray that a stage has started has groups of its own but stays in the session
    unless it daemonises itself, and Ray's own processes end with their driver.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    _signal_all(session_members(leader), signal.SIGTERM)
    while session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(session_members(leader), signal.SIGKILL)


def _signal_all(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def session_members(session: int) -> list[int]:
    """Living processes of a session, read from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found
