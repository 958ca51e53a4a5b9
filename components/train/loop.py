"""The training loop. The five training stages are this loop with five configurations.

All random numbers derive from (seed, epoch, batch), so a training that was interrupted anywhere and goes on from a
checkpoint computes the same as an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.attack.training_attacks import AttackSettings
from components.data.loader import Batch
from components.train.batch import attack_at, mixed, start_noise
from components.train.checkpoint_manager import CheckpointManager
from components.train.config import TrainConfig
from components.train.distributed import Distributed
from components.train.images import TrainImages, held_out_batches, to_device
from components.train.metrics import MetricsReporter
from components.train.monitor import Rollback, TrainingMonitor
from components.train.optimizer import learning_rate, set_lr
from components.train.seeds import seed_step
from components.train.signals import StopRequests
from components.train.state import TrainState
from components.train.stochastic_depth import draw_drop_path
from components.train.train_step import BeforeMicroBatch, train_step
from components.train.validation import score, validate_ema, validate_raw_weights

_REPORT_SECONDS = 0.5
"""Shortest time between two reads of figures that make the host wait for the device."""
_AGREED_STEPS = 64
"""Several workers check after the same steps that their figures are finite, so that all of them stop or roll back."""


@dataclass
class Training:
    """One stage's training on one worker.

    Attributes:
        monitor: detects a training that fails.
        checkpoints: None on workers that do not write.
        reporter: None on workers that do not report.
        stop: requests to end that arrive as signals.
        stop_requested: asked for requests to end where signals do not arrive (Ray workers).
    """

    config: TrainConfig
    seed: int
    distributed: Distributed
    images: TrainImages
    state: TrainState
    monitor: TrainingMonitor
    checkpoints: CheckpointManager | None = None
    reporter: MetricsReporter | None = None
    stop: StopRequests = field(default_factory=StopRequests)
    stop_requested: Callable[[], bool] = lambda: False
    forward: nn.Module | None = None
    _reported: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    def run(self) -> list[dict[str, Any]]:
        """Trains from the state's position to the end; returns the history, one entry per epoch.

        Raises:
            UserError: the training failed in a way for which the recipe says to stop.
            Terminated, KeyboardInterrupt: a request to end; a checkpoint was taken.
        """
        if self.config.compile:
            self.forward = cast(nn.Module, torch.compile(self.state.model))
        with self.stop:
            self.monitor.start()
            while self.state.position.epoch < self.config.epochs:
                try:
                    self._epoch()
                except Rollback as rollback:
                    self.monitor.roll_back(rollback.finding)
                    self._save(wait=True)
                self._end_if_requested()
        if self.checkpoints is not None:
            self.checkpoints.wait_until_written()
        return self.state.history

    def _epoch(self) -> None:
        position, loader = self.state.position, self.images.train
        self.state.meter.restart_clock()
        with loader.epoch(position.epoch, start_batch=position.batch) as batches:
            before = time.monotonic()
            for batch in batches:
                self.state.meter.waited(time.monotonic() - before)
                self._step(batch)
                position.batch, position.step = position.batch + 1, position.step + 1
                self._between_steps()
                before = time.monotonic()
        self._end_epoch()

    def _step(self, batch: Batch) -> None:
        config, state, place = self.config, self.state, self.state.position
        at = place.epoch + place.batch / self.images.train.num_batches
        set_lr(state.optimizer, self.lr(at))
        seed_step(self.seed, place.epoch, place.batch, self.distributed.rank)
        images, targets = self._mixed(*to_device(batch, self.distributed.device))
        attack = attack_at(config, at)
        result = train_step(
            self.forward or state.model,
            state.optimizer,
            images,
            targets,
            attack=attack,
            noise=self._noise(images, attack),
            micro_batch_size=config.micro_batch_size,
            before_micro_batch=self._drop_path(),
            precision=state.precision,
            global_batch=config.batch_size,
            reduce=self.distributed.all_reduce_gradients if self.distributed.size > 1 else None,
            clip=config.clip_grad,
        )
        state.ema.update()
        state.meter.add(result, config.batch_size)

    def lr(self, at: float) -> float:
        """Returns the learning rate at epoch `at`, smaller after rollbacks."""
        config = self.config
        rate = learning_rate(
            at, lr=config.lr, min_lr=config.min_lr, peak=config.warmup_epochs, epochs=float(config.epochs)
        )
        return rate * self.state.monitor.lr_scale

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        place, classes = self.state.position, self.images.num_classes
        return mixed(self.config, images, labels, classes=classes, seed=self.seed, epoch=place.epoch, batch=place.batch)

    def _noise(self, images: Tensor, attack: AttackSettings | None) -> Tensor | None:
        place, first = self.state.position, self.distributed.share(self.config.batch_size).start
        return start_noise(attack, images, first_row=first, seed=self.seed, epoch=place.epoch, batch=place.batch)

    def _drop_path(self) -> BeforeMicroBatch | None:
        place, rows = self.state.position, self.distributed.share(self.config.batch_size)
        where = {"seed": self.seed, "epoch": place.epoch, "batch": place.batch}
        return draw_drop_path(self.state.model, rows, **where, device=self.distributed.device)

    def _between_steps(self) -> None:
        """Reports progress, checks the figures, takes checkpoints within an epoch, and obeys requests to end."""
        now = time.monotonic()
        if self.distributed.size > 1 and self.state.position.step % _AGREED_STEPS == 0:
            self.monitor.check_finite(self.state.meter.figures())
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report()
        self._end_if_requested()
        if now - self._saved >= self.config.checkpoint_interval_s:
            self._save()

    def _end_if_requested(self) -> None:
        """Takes a checkpoint and ends, if there is a request to end.

        Raises:
            Terminated, KeyboardInterrupt: depending on the request.
        """
        if self.stop_requested():
            self.stop.received = self.stop.received or signal.SIGTERM
        if self.stop.received is not None:
            self._save(wait=True)
            self.stop.raise_if_requested()

    def _report(self) -> None:
        if self.reporter is None and self.distributed.size > 1:
            return
        place, figures = self.state.position, self.state.meter.figures()
        if self.distributed.size == 1:
            self.monitor.check_finite(figures)
        if self.reporter is not None:
            speed, per_epoch = self.state.meter.speed(), self.images.train.num_batches
            self.reporter.live(figures, speed, epoch=place.epoch, batch=place.batch, per_epoch=per_epoch)

    def _end_epoch(self) -> None:
        state, place = self.state, self.state.position
        figures, speed = state.meter.figures(), state.meter.speed()
        self.monitor.check_finite(figures)
        entry: dict[str, Any] = {
            "epoch": place.epoch + 1,
            "step": place.step,
            "lr": self.lr(place.epoch + 1),
            **figures,
            **speed,
        }
        last = place.epoch + 1 == self.config.epochs
        if last or (place.epoch + 1) % self.config.validation.every_epochs == 0:
            entry.update(self.validate_ema())
            entry.update(self._validate_raw_weights(attack_at(self.config, place.epoch + 1)))
        state.history.append(entry)
        self._remember_best(entry)
        place.epoch, place.batch = place.epoch + 1, 0
        state.meter.reset()
        if self.reporter is not None:
            self.reporter.epoch(entry, speed)
        if "clean_accuracy" in entry:
            self.monitor.after_validation()
        if time.monotonic() - self._saved >= self.config.checkpoint_min_interval_s and not last:
            self._save()

    def validate_ema(self) -> dict[str, float]:
        """Returns the EMA weights' accuracies on the held-out images.

        A request to end is obeyed after each batch: the epoch's last batch is done, so a resumed training starts with
        this validation.
        """
        batches = held_out_batches(self.images, self.distributed.device)
        return validate_ema(
            self.state.ema.model, batches, self.config, self.distributed, progress=self._between_validation_batches
        )

    def _between_validation_batches(self, images: int) -> None:
        self._end_if_requested()

    def _validate_raw_weights(self, attack: AttackSettings | None) -> dict[str, float]:
        batches = held_out_batches(self.images, self.distributed.device)
        return validate_raw_weights(
            self.state.model, batches, self.config, self.distributed, attack=attack, seed=self.seed
        )

    def _remember_best(self, entry: dict[str, Any]) -> None:
        """Keeps the EMA weights of the best validation on the CPU, if the recipe asks for them."""
        if self.config.keep_weights != "best" or "clean_accuracy" not in entry:
            return
        best = self.state.best
        if not best or score(entry) > best["score"]:
            self.state.best = {"epoch": entry["epoch"], "score": score(entry)}
            weights = self.state.ema.model.state_dict()
            self.state.best_weights = {name: t.detach().to("cpu", copy=True) for name, t in weights.items()}

    def _save(self, *, wait: bool = False) -> None:
        """Takes a checkpoint of the current state; skipped while an earlier one is being written, unless `wait`."""
        if self.checkpoints is None or (self.checkpoints.busy and not wait):
            return
        figures = self.state.meter.figures()
        if self.distributed.size == 1:
            self.monitor.check_finite(figures)
        elif not math.isfinite(figures["loss"]):
            return  # the workers will find it together
        self.checkpoints.save(self.state.snapshot(), wait=wait)
        self._saved = time.monotonic()
