"""What the last bits of a training depend on besides its numbers: threads and workers, kept over interruptions.

Sums over threads depend on their number, and on a CPU so does every product. A training goes on with the threads
that it had, however many cores the process that continues it was given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from components.cores import available_cores
from components.train.world import World


@dataclass
class Computing:
    """Who computed so far.

    Attributes:
        threads: torch's threads of each worker; 0 on GPUs, where they do not matter.
        workers: how many share a batch.
    """

    threads: int = 0
    workers: int = 1

    @classmethod
    def here(cls, world: World) -> Computing:
        """As this process is set up."""
        return cls(torch.get_num_threads() if world.device.type == "cpu" else 0, world.size)

    def take_over(self, world: World) -> str:
        """Goes on with these threads; returns what people should know, an empty string where there is nothing.

        With another number of workers the bits differ anyway, so the process stays as it is.
        """
        now = Computing.here(world)
        before = (self.threads, self.workers)
        if before == (now.threads, now.workers):
            return ""
        if self.workers != now.workers or not self.threads or not now.threads:
            self.threads, self.workers = now.threads, now.workers
            return (
                f"this training had {before[1]} workers so far and goes on with {now.workers}, so that its last bits "
                "are not those of a run that was left alone"
                if before[1] != now.workers
                else "this training moved between CPU and GPU, so its last bits are not those of a run that stayed"
            )
        torch.set_num_threads(self.threads)
        if self.threads > available_cores():
            return f"goes on with {self.threads} threads, as before, on {available_cores()} cores: exact, but slow"
        return ""
