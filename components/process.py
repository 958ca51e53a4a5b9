"""How many cores a stage may use: all that this process has, or the share that it was given.

Stages that run side by side on one machine share its cores. Sums over several threads depend on their number, so the
share is fixed for a whole pipeline run and does not follow what happens to run beside a stage.

Keeps freed memory in the process instead of giving it back after every layer.

glibc returns large blocks to the kernel as soon as they are free and faults the same pages in again for the next
layer's output. Measured on two cores with a 0.34 M parameter ConvNeXt, 64 images of 32 px, one thread: forward 22 ->
15 ms, forward and backward 40 -> 34 ms, page faults in 80 passes 119,000 -> 3,600. Values do not change.

A process that must not outlive the one that started it, however that one dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

CORES_VARIABLE = "ROBUSTRAIN_CORES"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_cores() -> int:
    """Cores for the threads of one stage: `ROBUSTRAIN_CORES` where it is set, else all there are."""
    given = os.environ.get(CORES_VARIABLE, "")
    return max(1, min(int(given), available_cores())) if given.isdigit() else available_cores()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMIT = 1 << 30
"""Blocks up to 1 GiB stay; a process gives them back when it ends."""


def keep_freed_memory() -> bool:
    """Sets glibc's limits for this process and its children; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        return bool(set_option(_MMAP_THRESHOLD, _LIMIT) and set_option(_TRIM_THRESHOLD, _LIMIT))
    return False


_PR_SET_PDEATHSIG = 1


def exit_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Linux: this process gets a signal when the thread that started it dies.

    Args:
        parent: the process that started this one; where it is gone already, the signal comes now.
        number: the signal.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
