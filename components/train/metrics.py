"""Measures and reports a training: loss, gradient norm, strength of the attack, images and FLOPs per second, memory.

`Meter` sums figures over the steps of an epoch. `MetricsReporter` sends them to the live progress line, to MLflow, and
to an optional Prometheus port; only the main worker has one. The loop reads the figures that make the host wait for the
device at most twice per second; the reporter uses the device only for the one measurement of its peak.

A step's FLOPs are those of one forward, counted by torch from shapes alone, times the forwards and backwards of the
step; the gradient by the input and the gradient by the weights cost a forward each. (torch's own count of a backward is
not used: in version 2.14 it takes the weight gradient of a depthwise convolution for that of a dense one.) The peak is
that of a large matrix product in the training's precision, measured once on a GPU, or the recipe's `peak_tflops`. On a
CPU no peak is measured: cores are shared and change their clock, so it would mean little, and the utilisation stays
unknown.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from components.attack.apgd import frozen
from components.attack.training_attacks import TRAINING_ATTACKS, AttackSettings
from components.models import forward_macs
from components.train.batch import attack_at
from components.train.config import TrainConfig
from components.train.prometheus import MetricsServer
from components.train.train_step import StepResult


class Meter:
    """Sums over the steps of one epoch. They stay on the device, so adding to them does not wait for it.

    `sums` (float64: loss, gained, flipped, images, gradient norm times images, images with such a norm) goes into
    checkpoints, so that the figures of an interrupted epoch are those of an uninterrupted one; the clocks do not.

    Args:
        scaled: the training has a loss scaler, which meets infinite gradients on purpose and skips such steps; their
            norms are skipped here too. Otherwise a norm that is not finite stays visible.
    """

    def __init__(self, device: torch.device, *, scaled: bool = False) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self._scaled = scaled
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts the clocks of images per second and of waiting."""
        self._started, self._waited, self._timed_images = time.monotonic(), 0.0, 0

    def reset(self) -> None:
        """Starts a new epoch."""
        self.sums = torch.zeros_like(self.sums)
        self.restart_clock()

    def add(self, result: StepResult, images: int) -> None:
        """Adds one step of `images` images over all workers."""
        norm = result.grad_norm
        counts = torch.isfinite(norm) if self._scaled else torch.ones_like(norm, dtype=torch.bool)
        self.sums[:3] += result.sums
        self.sums[3] += images
        self.sums[4] += torch.where(counts, norm * images, 0.0)
        self.sums[5] += counts * images
        self._timed_images += images

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    def figures(self) -> dict[str, float]:
        """Returns means over the images of the epoch so far; waits for the device, once.

        With a loss scaler also `left_out`, the share of images whose step it skipped.
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
        """Returns images_per_s over all workers, and data_wait, the share of this worker's time spent waiting."""
        spent = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_s": self._timed_images / spent, "data_wait": self._waited / spent}


Figures = dict[str, float]


class Reporter(Protocol):
    """Takes the main worker's reports; `components.store.run.StageRun` is one."""

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Logs the figures of one moment."""
        ...

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Updates the live progress."""
        ...

    def warn(self, text: str) -> None:
        """Shows a warning to the user; the stage goes on."""
        ...


@dataclass
class MetricsReporter:
    """Reports one training's figures.

    Attributes:
        model: the network, not compiled, for its FLOPs.
        dtype: of the training's forwards, in which the peak is measured.
        num_workers: number of devices, whose peaks add up.
        server: serves Prometheus; None without a port.
    """

    config: TrainConfig
    report: Reporter
    model: nn.Module
    device: torch.device
    dtype: torch.dtype = torch.float32
    num_workers: int = 1
    server: MetricsServer | None = None
    _flops: float | None = None
    _peak: float | None = None
    _logged: float = field(default_factory=time.monotonic)

    def machine(self, speed: Figures) -> Figures:
        """Returns `speed`, flops_per_s, memory_gib, and flop_utilisation if a peak is known."""
        if self._flops is None:
            self._flops = step_flops(
                self.model, attack_at(self.config, float(self.config.epochs)), resolution=self.config.resolution
            )
            tflops = self.config.peak_tflops
            self._peak = tflops * 1e12 if tflops else measured_peak(self.device, self.dtype)
        achieved = self._flops * speed["images_per_s"]
        figures = {**speed, "flops_per_s": achieved, "memory_gib": memory_gib(self.device)}
        if self._peak is not None:
            figures["flop_utilisation"] = achieved / (self._peak * self.num_workers)
        return figures

    def live(self, figures: Figures, speed: Figures, *, epoch: int, batch: int, per_epoch: int) -> None:
        """Reports from inside an epoch.

        Args:
            figures: of the epoch so far, from `Meter.figures`.
            speed: from `Meter.speed`.
            epoch, batch: completed epochs, and batches of the current one.
            per_epoch: batches in an epoch.
        """
        size, epochs = self.config.batch_size, self.config.epochs
        machine = self.machine(speed)
        note = progress_note({**figures, **machine}, attacked=self.config.attack is not None)
        self.report.progress(
            phase="train",
            done=(epoch * per_epoch + batch) * size,
            total=epochs * per_epoch * size,
            note=f"epoch {epoch + 1}/{epochs}, {note}",
        )
        self._expose({**figures, **machine}, epoch, epoch * per_epoch + batch)
        if time.monotonic() - self._logged >= self.config.log_interval_s:
            live = {f"live_{name}": value for name, value in {**figures, **machine}.items()}
            self._log(live, epoch * per_epoch + batch)

    def _log(self, figures: Figures, step: int) -> None:
        self._logged = time.monotonic()
        try:
            self.report.log_metrics(figures, step=step)
        except Exception as error:  # a tracking server may be down for a while; the history is kept here anyway
            self.report.warn(f"the figures of step {step} were not logged: {error}")

    def epoch(self, entry: Figures, speed: Figures) -> None:
        """Reports the end of an epoch: its entry in the history, and the speed of the machine."""
        figures = {k: v for k, v in {**entry, **self.machine(speed)}.items() if k not in ("epoch", "step")}
        epoch = int(entry["epoch"])
        self._log(figures, epoch)
        self._expose(figures, epoch, int(entry["step"]))

    def _expose(self, figures: Figures, epochs: int, steps: int) -> None:
        if self.server is not None:
            self.server.set({**figures, "epochs_done": float(epochs), "steps_done": float(steps)})

    def close(self) -> None:
        """Releases the port, if there is one."""
        if self.server is not None:
            self.server.close()


def progress_note(figures: Figures, *, attacked: bool) -> str:
    """Returns the live line's note, the most important first: loss, attack, gradient, waiting, memory, FLOPs.

    The live line already has images per second.
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


_SIDE, _PRODUCTS = 8192, 8
"""Side and number of the matrix products that measure a GPU's peak."""


def step_flops(model: nn.Module, attack: AttackSettings | None, *, resolution: int) -> float:
    """Returns the floating-point operations of a training step per image, of convolutions and matrix products.

    Args:
        model: takes (B, 3, R, R); it is not changed, and nothing is computed.
        attack: the attack, or None for a clean step.
    """
    with frozen(model):
        macs = forward_macs(model, resolution)
    return 2.0 * macs * forwards(attack)


def forwards(attack: AttackSettings | None) -> int:
    """Returns the cost of a step in forwards: 3 for an update (TRADES updates on two images), and the attack's."""
    update = 3
    if attack is None:
        return update
    return TRAINING_ATTACKS[attack.name].forwards(attack) + (2 * update if attack.loss == "trades" else update)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Measures the FLOP/s of large matrix products in `dtype` on one GPU; takes a few hundredths of a second.

    None on a CPU, and on a GPU without memory for them.
    """
    if device.type != "cuda":
        return None
    try:
        return _products_per_second(device, dtype) * 2 * _SIDE**3
    except torch.OutOfMemoryError:
        return None


def _products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    torch.mm(one, other)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(one, other)
    torch.cuda.synchronize(device)
    return _PRODUCTS / (time.perf_counter() - started)


def memory_gib(device: torch.device) -> float:
    """Returns the peak memory so far in GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)
