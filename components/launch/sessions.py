"""Finds and ends every process that a stage has started, by the process session that the stage leads."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

GRACE_SECONDS = 3.0
"""Time that processes have to end by themselves before they are killed."""
_KILL_SECONDS = 1.0
"""Time that killed processes have to be gone: the kernel needs a moment for those with much memory."""
_POLL_SECONDS = 0.05


def end_sessions(leaders: Collection[int]) -> None:
    """Sends SIGTERM to all processes of some sessions, and SIGKILL to those left after the grace time.

    By session, not by process group: a Ray that a stage has started has groups of its own but stays in the session
    unless it becomes a daemon. Ray's own processes get no SIGTERM: they end with their driver, which needs them to let
    its leading worker take a checkpoint.

    Args:
        leaders: process ids of the sessions' leaders.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    ask_to_end(leaders)
    while session_members(*leaders) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := session_members(*leaders)) and time.monotonic() < deadline:
        signal_all(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def ask_to_end(leaders: Collection[int]) -> None:
    """Sends SIGTERM to all processes of some sessions but Ray's, to this one last, and returns at once."""
    members = [process for process in session_members(*leaders) if not _is_rays(process)]
    signal_all(sorted(members, key=lambda process: process == os.getpid()), signal.SIGTERM)


def signal_all(processes: Collection[int], number: signal.Signals) -> None:
    """Sends a signal to processes; those that are gone are ignored."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def session_members(*leaders: int) -> list[int]:
    """Returns the living processes of some sessions, and the leaders also before they have made their session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if (int(fields[3]) in leaders or int(entry.name) in leaders) and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def _is_rays(process: int) -> bool:
    """Whether a process belongs to Ray: its workers are named `ray::...`, its servers are files of its package."""
    with contextlib.suppress(OSError):
        command = (Path("/proc") / str(process) / "cmdline").read_bytes().split(b"\0")
        return command[0].startswith(b"ray::") or any(b"/ray/" in part for part in command[:3])
    return False
