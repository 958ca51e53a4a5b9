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
    """SIGTERM to the processes of the session that `leader` leads, SIGKILL to those left after the grace time.

    By session, not by process group: a Ray that a stage has started has groups of its own but stays in the session
    unless it daemonises itself. Ray's own processes get no SIGTERM: they end with their driver, which needs them to let
    its leading worker take a checkpoint.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    _signal_all([process for process in session_members(leader) if not _is_rays(process)], signal.SIGTERM)
    while session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(session_members(leader), signal.SIGKILL)


def _signal_all(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _is_rays(process: int) -> bool:
    """Whether a process is one of a Ray's: its workers call themselves `ray::...`, its servers lie in its package."""
    with contextlib.suppress(OSError):
        command = (Path("/proc") / str(process) / "cmdline").read_bytes().split(b"\0")
        return command[0].startswith(b"ray::") or any(b"/ray/" in part for part in command[:3])
    return False


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
