"""THE training loop: the five training stages are this loop with five configurations.

Whatever is random derives from (seed, epoch, batch), so a training that was interrupted anywhere and went on from a
checkpoint computes what the uninterrupted one would have computed, bit for bit on a CPU.
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

from components.data.loader import Batch
from components.train.batch import mixed, start_noise, threat_at
from components.train.checkpoint_manager import CheckpointStore
from components.train.config import TrainConfig
from components.train.distributed import World
from components.train.images import TrainImages, held_out_batches, to_device
from components.train.metrics import Telling
from components.train.monitor import GoBack, Guard
from components.train.optimizer import learning_rate, set_lr
from components.train.seeds import seed_step
from components.train.signals import StopRequests
from components.train.state import TrainState
from components.train.stochastic_depth import draw_depth
from components.train.train_step import EachPiece, Threat, train_step
from components.train.validation import live_look, probe, score

_LOOK_SECONDS = 0.5
"""Figures that make the host wait for the device are looked at no more often."""
_AGREED_STEPS = 64
"""Several workers look whether their figures are finite after the same steps, so that all of them stop or go back."""


@dataclass
class Training:
    """One stage's training on one worker.

    Attributes:
        guard: watches for signs that the training has gone wrong.
        checkpoints: None on workers that do not write.
        telling: None on workers that do not report.
        stop: requests to end; `outside` asks for them where signals do not arrive (Ray workers).
    """

    config: TrainConfig
    seed: int
    world: World
    images: TrainImages
    state: TrainState
    guard: Guard
    checkpoints: CheckpointStore | None = None
    telling: Telling | None = None
    stop: StopRequests = field(default_factory=StopRequests)
    outside: Callable[[], bool] = lambda: False
    forward: nn.Module | None = None
    _looked: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    def run(self) -> list[dict[str, Any]]:
        """Trains from the state's position to the end; the history, one entry an epoch.

        Raises:
            UserError: the training went wrong in a way for which the recipe says to stop.
            Terminated, KeyboardInterrupt: asked to end; a checkpoint was taken.
        """
        if self.config.compile:
            self.forward = cast(nn.Module, torch.compile(self.state.model))
        with self.stop:
            self.guard.begin()
            while self.state.position.epoch < self.config.epochs:
                try:
                    self._epoch()
                except GoBack as sign:
                    self.guard.go_back(sign.finding)
                    self._save(wait=True)
                self._obey()
        if self.checkpoints is not None:
            self.checkpoints.settle()
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
        seed_step(self.seed, place.epoch, place.batch, self.world.rank)
        images, targets = self._mixed(*to_device(batch, self.world.device))
        threat = threat_at(config, at)
        outcome = train_step(
            self.forward or state.model,
            state.optimizer,
            images,
            targets,
            threat=threat,
            noise=self._noise(images, threat),
            chunk=config.micro_batch,
            each_piece=self._depth(),
            precision=state.precision,
            global_batch=config.batch_size,
            reduce=self.world.add_up_gradients if self.world.size > 1 else None,
            clip=config.clip_grad,
        )
        state.ema.update()
        state.meter.add(outcome, config.batch_size)

    def lr(self, at: float) -> float:
        """The learning rate at epoch `at`, smaller where the training went back."""
        config = self.config
        rate = learning_rate(
            at, lr=config.lr, lr_min=config.lr_min, peak=config.warmup_epochs, epochs=float(config.epochs)
        )
        return rate * self.state.health.lr_scale

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        place, classes = self.state.position, self.images.num_classes
        return mixed(self.config, images, labels, classes=classes, seed=self.seed, epoch=place.epoch, batch=place.batch)

    def _noise(self, images: Tensor, threat: Threat | None) -> Tensor | None:
        place, first = self.state.position, self.world.share(self.config.batch_size).start
        return start_noise(
            self.config, threat, images, first_row=first, seed=self.seed, epoch=place.epoch, batch=place.batch
        )

    def _depth(self) -> EachPiece | None:
        place, rows = self.state.position, self.world.share(self.config.batch_size)
        where = {"seed": self.seed, "epoch": place.epoch, "batch": place.batch}
        return draw_depth(self.state.model, rows, **where, device=self.world.device)

    def _between_steps(self) -> None:
        """Progress, the look at the figures, checkpoints within an epoch, and requests to end."""
        now = time.monotonic()
        if self.world.size > 1 and self.state.position.step % _AGREED_STEPS == 0:
            self.guard.check_finite(self.state.meter.figures())
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look()
        self._obey()
        if now - self._saved >= 60 * self.config.checkpoint_minutes:
            self._save()

    def _obey(self) -> None:
        """Where an end was asked for: takes a checkpoint and ends.

        Raises:
            Terminated, KeyboardInterrupt: as the request says.
        """
        if self.outside():
            self.stop.received = self.stop.received or signal.SIGTERM
        if self.stop.received is not None:
            self._save(wait=True)
            self.stop.obey()

    def _look(self) -> None:
        if self.telling is None and self.world.size > 1:
            return
        place, figures = self.state.position, self.state.meter.figures()
        if self.world.size == 1:
            self.guard.check_finite(figures)
        if self.telling is not None:
            speed, per_epoch = self.state.meter.speed(), self.images.train.num_batches
            self.telling.live(figures, speed, epoch=place.epoch, batch=place.batch, per_epoch=per_epoch)

    def _end_epoch(self) -> None:
        state, place = self.state, self.state.position
        figures, speed = state.meter.figures(), state.meter.speed()
        self.guard.check_finite(figures)
        entry: dict[str, Any] = {
            "epoch": place.epoch + 1,
            "step": place.step,
            "lr": self.lr(place.epoch + 1),
            **figures,
            **speed,
        }
        last = place.epoch + 1 == self.config.epochs
        if last or (place.epoch + 1) % self.config.probe.every == 0:
            entry.update(self.probe())
            entry.update(self._live_look(threat_at(self.config, place.epoch + 1)))
        state.history.append(entry)
        self._remember_best(entry)
        place.epoch, place.batch = place.epoch + 1, 0
        state.meter.reset()
        if self.telling is not None:
            self.telling.epoch(entry, speed)
        if "clean_accuracy" in entry:
            self.guard.judge()
        if time.monotonic() - self._saved >= self.config.checkpoint_seconds and not last:
            self._save()

    def probe(self) -> dict[str, float]:
        """The averaged weights' accuracies on the held-out images.

        An end that is asked for meanwhile is not kept waiting: the epoch's last batch is done, so the training will go
        on with this probe.
        """
        batches, told = held_out_batches(self.images, self.world.device), self._probed
        return probe(self.state.ema.model, batches, self.config, self.world, progress=told)

    def _probed(self, images: int) -> None:
        """After every batch of a probe."""
        self._obey()

    def _live_look(self, threat: Threat | None) -> dict[str, float]:
        """The accuracies of the weights being trained, on some held-out images."""
        batches = held_out_batches(self.images, self.world.device)
        return live_look(self.state.model, batches, self.config, self.world, threat=threat, seed=self.seed)

    def _remember_best(self, entry: dict[str, Any]) -> None:
        """Keeps the averaged weights of the best probe on the CPU, where the recipe selects them."""
        if self.config.select != "best" or "clean_accuracy" not in entry:
            return
        best = self.state.best
        if not best or score(entry) > best["score"]:
            self.state.best = {"epoch": entry["epoch"], "score": score(entry)}
            weights = self.state.ema.model.state_dict()
            self.state.best_weights = {name: t.detach().to("cpu", copy=True) for name, t in weights.items()}

    def _save(self, *, wait: bool = False) -> None:
        """A checkpoint of the present state; while an earlier one is being written, only where it must be taken."""
        if self.checkpoints is None or (self.checkpoints.busy and not wait):
            return
        figures = self.state.meter.figures()
        if self.world.size == 1:
            self.guard.check_finite(figures)
        elif not math.isfinite(figures["loss"]):
            return  # the workers will see it together
        self.checkpoints.save(self.state.snapshot(), wait=wait)
        self._saved = time.monotonic()
