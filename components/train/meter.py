"""What a training tells about itself: loss, gradient norm, attack strength, images a second, waiting for data."""

from __future__ import annotations

import time

import torch

from components.train.step import Outcome


class Meter:
    """Sums over the steps of one epoch. They stay on the device, so adding to them waits for nothing.

    `sums` (float64: loss, gained, flipped, images, gradient norm times images, images with such a norm) goes into
    checkpoints, so that the figures of an interrupted epoch are those of an uninterrupted one; the clocks do not.

    Args:
        scaled: the training has a loss scaler, which meets infinite gradients on purpose and leaves such steps out;
            their norms are left out here too. Otherwise a norm that is no number stays to be seen.
    """

    def __init__(self, device: torch.device, *, scaled: bool = False) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self._scaled = scaled
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
        norm = outcome.grad_norm
        counts = torch.isfinite(norm) if self._scaled else torch.ones_like(norm, dtype=torch.bool)
        self.sums[:3] += outcome.sums
        self.sums[3] += images
        self.sums[4] += torch.where(counts, norm * images, 0.0)
        self.sums[5] += counts * images
        self._timed_images += images

    def waited(self, seconds: float) -> None:
        """Counts time spent waiting for a batch."""
        self._waited += seconds

    def figures(self) -> dict[str, float]:
        """Means over the images of the epoch so far; waits for the device, once.

        With a loss scaler also `left_out`, the share of images whose step it left out.
        """
        loss, gained, flipped, images, norm, counted = self.sums.tolist()
        count = max(images, 1.0)
        figures = {
            "loss": loss / count,
            "attack_gain": gained / count,
            "attack_flips": flipped / count,
            "grad_norm": norm / max(counted, 1.0),
        }
        return {**figures, "left_out": 1 - counted / count} if self._scaled else figures

    def speed(self) -> dict[str, float]:
        """images_per_s over all workers, and the share of this worker's time that went into waiting for data."""
        spent = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_s": self._timed_images / spent, "data_wait": self._waited / spent}
