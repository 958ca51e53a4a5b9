"""This process and those it starts: cores, log, freed memory, and who ends when.

A stage leads a process session; by it every process that the stage has started is found and ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from components.errors import UserError, nearest

CORES_VARIABLE = "ROBUSTRAIN_CORES"


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_cores() -> int:
    """Returns the number of cores for the threads of one stage: `ROBUSTRAIN_CORES` if set, else all available ones.

    Stages that run side by side share the machine's cores. Sums over several threads depend on their number, so the
    share is fixed for a whole pipeline run and does not follow what happens to run beside a stage.

    Raises:
        UserError: the variable is not a whole number from 1 on.
    """
    given = os.environ.get(CORES_VARIABLE, "").strip()
    if not given:
        return available_cores()
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        remedy = "give a whole number, 1 or more, or unset it for all cores"
        raise UserError("is not a number of cores", where=CORES_VARIABLE, value=given, remedy=remedy)
    return min(int(given), available_cores())


LOG_LEVEL_VARIABLE = "ROBUSTRAIN_LOG_LEVEL"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PROJECT_LOGGERS = ("robustrain", "components", "pipeline")


def set_up_logging(default: str = "info") -> None:
    """Sends the log to standard error at the level that `ROBUSTRAIN_LOG_LEVEL` names.

    For commands and stage processes. Library code only uses `logging.getLogger(__name__)`, so that a program which
    imports it sets handlers and levels as it likes. Other libraries stay at `warning`. A second call changes the level.

    Args:
        default: the level without the variable: `debug`, `info`, `warning` or `error`.

    Raises:
        UserError: the variable names no level.
    """
    name = (os.environ.get(LOG_LEVEL_VARIABLE) or default).lower()
    if name not in _LEVELS:
        raise UserError(
            f"unknown log level{nearest(name, _LEVELS)}",
            where=LOG_LEVEL_VARIABLE,
            value=name,
            remedy=f"use one of: {', '.join(_LEVELS)}",
        )
    # Without `force`: a handler that is there already (of a test, of Ray) stays the only one.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for logger in _PROJECT_LOGGERS:
        logging.getLogger(logger).setLevel(_LEVELS[name])


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
"""Blocks up to 1 GiB are kept; a process gives them back when it ends."""


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in this process and its children; returns False on systems without glibc.

    glibc returns large blocks to the kernel as soon as they are free and faults the same pages in again for the next
    layer's output. Measured on two cores with a 0.34 M parameter ConvNeXt, 64 images of 32 px, one thread: forward 22
    -> 15 ms, forward and backward 40 -> 34 ms, page faults in 80 passes 119,000 -> 3,600. Values do not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        return bool(set_option(_MMAP_THRESHOLD, _KEPT_BYTES) and set_option(_TRIM_THRESHOLD, _KEPT_BYTES))
    return False


_PR_SET_PDEATHSIG = 1


def exit_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Makes the kernel (Linux) signal this process when the thread that started it dies, however it dies.

    Args:
        parent: process id of the parent; if it is gone already, the signal is sent now.
        number: the signal.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


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
