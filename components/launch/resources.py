"""What one stage asks of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What one stage needs.

    Args:
        cpus: cores of every working pod.
        memory_gib: memory of every working pod, GiB; /dev/shm counts towards it.
        gpus: GPUs of every working pod.
        workers: Ray workers of the stage. With 1 the head does the work alone; from 2 on it leads that many pods.
        deadline_s: seconds from the job's start after which KubeRay ends it.
        workers_min: smallest number of workers that the stage can begin with, if it takes as many as the cluster has
            free; 0: all of `workers` or none.
    """

    cpus: float = 4
    memory_gib: float = 16
    gpus: int = 0
    workers: int = 1
    deadline_s: int = 24 * 3600
    workers_min: int = 0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: a value is too small.
        """
        whole = (("gpus", 0), ("workers", 1), ("workers_min", 0), ("deadline_s", 1))
        for name, least in (("cpus", 0.1), ("memory_gib", 0.5), *whole):
            value = getattr(self, name)
            if value < least:
                raise UserError("is too small", where=f"resources.{name}", value=value, remedy=f"give at least {least}")

    @property
    def is_elastic(self) -> bool:
        """Whether the number of working pods may vary."""
        return 0 < self.workers_min < self.workers
