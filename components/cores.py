"""How many cores a stage may use: all that this process has, or the share that it was given.

Stages that run side by side on one machine share its cores. Sums over several threads depend on their number, so the
share is fixed for a whole pipeline run and does not follow what happens to run beside a stage.
"""

from __future__ import annotations

import os

CORES_VARIABLE = "ROBUSTRAIN_CORES"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_cores() -> int:
    """Cores for the threads of one stage: `ROBUSTRAIN_CORES` where it is set, else all there are."""
    given = os.environ.get(CORES_VARIABLE, "")
    return max(1, min(int(given), available_cores())) if given.isdigit() else available_cores()
