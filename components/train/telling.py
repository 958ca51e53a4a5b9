"""How a training tells how it goes: the live note, MLflow over time, and Prometheus where a port is given.

Only the leading worker holds one. The figures that make the host wait for the device are handed in by the loop, which
reads them twice a second at most; nothing here touches the device but the one measurement of its peak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from components.train.config import TrainConfig
from components.train.cost import measured_peak, memory_gib, step_flops
from components.train.exposition import Exposition
from components.train.preparing import threat_at

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
