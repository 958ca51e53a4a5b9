"""What a training tells about itself: loss, gradient norm, attack strength, images a second, waiting for data.

How a training tells how it goes: the live note, MLflow over time, and Prometheus where a port is given.

Only the leading worker holds one. The figures that make the host wait for the device are handed in by the loop, which
reads them twice a second at most; nothing here touches the device but the one measurement of its peak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from components.train.batch import threat_at
from components.train.config import TrainConfig
from components.train.prometheus import Exposition
from components.train.throughput import measured_peak, memory_gib, step_flops
from components.train.train_step import Outcome


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


Figures = dict[str, float]


class Reporter(Protocol):
    """Where the leading worker tells how it goes; `components.store.run.StageRun` is one."""

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Figures of one moment."""
        ...

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Live progress."""
        ...

    def warn(self, text: str) -> None:
        """Something people should know that does not end the stage."""
        ...


@dataclass
class Telling:
    """Tells one training's figures.

    Attributes:
        model: the network, not compiled; its FLOPs are counted.
        dtype: of the training's forwards; the peak is measured in it.
        workers: the peak of all devices is so many times one device's.
        exposition: what Prometheus reads; None without a port.
    """

    config: TrainConfig
    report: Reporter
    model: nn.Module
    device: torch.device
    dtype: torch.dtype = torch.float32
    workers: int = 1
    exposition: Exposition | None = None
    _flops: float | None = None
    _peak: float | None = None
    _logged: float = field(default_factory=time.monotonic)

    def machine(self, speed: Figures) -> Figures:
        """`speed` and what follows from it: flops_per_s, flop_utilisation where a peak is known, memory_gib."""
        if self._flops is None:
            self._flops = step_flops(
                self.model, threat_at(self.config, float(self.config.epochs)), resolution=self.config.resolution
            )
            given = self.config.peak_tflops
            self._peak = given * 1e12 if given else measured_peak(self.device, self.dtype)
        achieved = self._flops * speed["images_per_s"]
        figures = {**speed, "flops_per_s": achieved, "memory_gib": memory_gib(self.device)}
        if self._peak is not None:
            figures["flop_utilisation"] = achieved / (self._peak * self.workers)
        return figures

    def live(self, figures: Figures, speed: Figures, *, epoch: int, batch: int, per_epoch: int) -> None:
        """A look inside an epoch.

        Args:
            figures: of the epoch so far; see `Meter.figures`.
            speed: see `Meter.speed`.
            epoch, batch: whole epochs and batches of the present one that are done.
            per_epoch: batches in an epoch.
        """
        size, epochs = self.config.batch_size, self.config.epochs
        machine = self.machine(speed)
        self.report.progress(
            phase="train",
            done=(epoch * per_epoch + batch) * size,
            total=epochs * per_epoch * size,
            note=f"epoch {epoch + 1}/{epochs}, {note({**figures, **machine}, attacked=self.config.attack is not None)}",
        )
        self._expose({**figures, **machine}, epoch, epoch * per_epoch + batch)
        if time.monotonic() - self._logged >= 60 * self.config.metrics_minutes:
            told = {f"live_{name}": value for name, value in {**figures, **machine}.items()}
            self._log(told, epoch * per_epoch + batch)

    def _log(self, figures: Figures, step: int) -> None:
        self._logged = time.monotonic()
        try:
            self.report.log_metrics(figures, step=step)
        except Exception as error:  # a tracking server may be away for a while; the history is kept here all the same
            self.report.warn(f"the figures of step {step} were not logged: {error}")

    def epoch(self, entry: Figures, speed: Figures) -> None:
        """The end of an epoch: its entry in the history goes to MLflow, with what the machine did."""
        figures = {k: v for k, v in {**entry, **self.machine(speed)}.items() if k not in ("epoch", "step")}
        epoch = int(entry["epoch"])
        self._log(figures, epoch)
        self._expose(figures, epoch, int(entry["step"]))

    def _expose(self, figures: Figures, epochs: int, steps: int) -> None:
        if self.exposition is not None:
            self.exposition.set({**figures, "epochs_done": float(epochs), "steps_done": float(steps)})

    def close(self) -> None:
        """Ends the port, if there is one."""
        if self.exposition is not None:
            self.exposition.close()


def note(figures: Figures, *, attacked: bool) -> str:
    """One line for people, what matters most first: loss, attack, gradient, waiting, memory, FLOPs.

    Images a second are not in it: the live line has them already.
    """
    parts = [f"loss {figures['loss']:.3f}"]
    if attacked:
        parts.append(f"attack +{figures['attack_gain']:.2g}, flips {figures['attack_flips']:.0%}")
    parts += [
        f"gradient {figures['grad_norm']:.2g}",
        f"waiting {figures['data_wait']:.0%}",
        f"{figures['memory_gib']:.1f} GiB",
        f"{figures['flops_per_s'] / 1e12:.3g} TFLOP/s",
    ]
    if "flop_utilisation" in figures:
        parts.append(f"{figures['flop_utilisation']:.0%} of peak")
    return ", ".join(parts)
