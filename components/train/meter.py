"""What a training tells about itself: loss, gradient norm, attack strength, images a second, waiting for data."""

from __future__ import annotations

import time

import torch

from components.train.step import Outcome


class Meter:
    """Sums over the steps of one epoch. They stay on the device, so adding to them waits for nothing.

    `sums` (float64: loss, gained, flipped, gradient norm times images, images) goes into checkpoints, so that the
    figures of an interrupted epoch are those of an uninterrupted one; the clocks do not.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Images a second and waiting count from here."""
        self._started, self._waited, self._timed_images = time.monotonic(), 0.0, 0

    def reset(self) -> None:
        """A new epoch."""
        self.sums = torch.zeros_like(self.sums)
        self.restart_clock()

    def add(self, outcome: Outcome, images: int) -> None:
        """Counts one step of `images` images over all workers."""
        self.sums[:3] += outcome.sums
        self.sums[3] += outcome.grad_norm * images
        self.sums[4] += images
        self._timed_images += images

    def waited(self, seconds: float) -> None:
        """Counts time spent waiting for a batch."""
        self._waited += seconds

    def figures(self) -> dict[str, float]:
        """Means over the images of the epoch so far; waits for the device, once."""
        loss, gained, flipped, norm, images = self.sums.tolist()
        count = max(images, 1.0)
        return {
            "loss": loss / count,
            "attack_gain": gained / count,
            "attack_flips": flipped / count,
            "grad_norm": norm / count,
        }

    def speed(self) -> dict[str, float]:
        """images_per_s over all workers, and the share of this worker's time that went into waiting for data."""
        spent = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_s": self._timed_images / spent, "data_wait": self._waited / spent}
