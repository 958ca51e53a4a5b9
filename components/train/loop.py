"""THE training loop: the five training stages are this loop with five configurations.

Whatever is random derives from (seed, epoch, batch), so a training that was interrupted anywhere and went on from a
checkpoint computes what the uninterrupted one would have computed, bit for bit on a CPU.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from components.data.loader import Batch
from components.train.checkpoint import CheckpointStore
from components.train.config import TrainConfig
from components.train.health import require_finite, watch
from components.train.images import TrainImages, held_out_batches, to_device
from components.train.mix import draw_mix, mix_images, soft_targets
from components.train.optim import learning_rate, set_lr
from components.train.probe import probe
from components.train.seeds import row_noise, seed_step
from components.train.signals import StopRequests
from components.train.state import TrainState
from components.train.step import Threat, train_step
from components.train.world import World

_LOOK_SECONDS = 0.5
"""Figures that make the host wait for the device are looked at no more often."""


class Reporter(Protocol):
    """Where the leading worker tells how it goes; `components.store.run.StageRun` is one."""

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Figures of one epoch."""
        ...

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Live progress."""
        ...


@dataclass
class Training:
    """One stage's training on one worker.

    Attributes:
        checkpoints: None on workers that do not write.
        report: None on workers that do not report.
        stop: requests to end; `outside` asks for them where signals do not arrive (Ray workers).
    """

    config: TrainConfig
    seed: int
    world: World
    images: TrainImages
    state: TrainState
    checkpoints: CheckpointStore | None = None
    report: Reporter | None = None
    stop: StopRequests = field(default_factory=StopRequests)
    outside: Callable[[], bool] = lambda: False
    forward: nn.Module | None = None
    _looked: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    def run(self) -> list[dict[str, Any]]:
        """Trains from the state's position to the end; the history, one entry an epoch.

        Raises:
            UserError: the figures stopped being finite, or training collapsed and the recipe says to stop.
            Terminated, KeyboardInterrupt: asked to end; a checkpoint was taken.
        """
        if self.config.compile:
            self.forward = cast(nn.Module, torch.compile(self.state.model))
        with self.stop:
            while self.state.position.epoch < self.config.epochs:
                self._epoch()
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
        threat = self.threat(at)
        outcome = train_step(
            self.forward or state.model,
            state.optimizer,
            images,
            targets,
            threat=threat,
            noise=self._noise(images, threat),
            precision=state.precision,
            global_batch=config.batch_size,
            reduce=self.world.add_up_gradients if self.world.size > 1 else None,
            clip=config.clip_grad,
        )
        state.ema.update()
        state.meter.add(outcome, config.batch_size)

    def lr(self, at: float) -> float:
        """The learning rate at epoch `at`."""
        config = self.config
        return learning_rate(
            at, lr=config.lr, lr_min=config.lr_min, peak=config.warmup_epochs, epochs=float(config.epochs)
        )

    def threat(self, at: float) -> Threat | None:
        """The attack at epoch `at`; its radius grows where the recipe warms it up."""
        attack = self.config.attack
        if attack is None:
            return None
        share = min(at / attack.eps_warmup, 1.0) if attack.eps_warmup else 1.0
        if share == 0:
            return None
        return Threat(
            norm=attack.norm,
            eps=attack.eps * share,
            steps=attack.steps,
            form=attack.form,
            kind=attack.kind,
            loss=attack.loss,
            beta=attack.beta,
            fgsm_step=attack.fgsm_step,
        )

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        config, place, mix = self.config, self.state.position, None
        if config.mixes:
            side = (images.shape[2], images.shape[3])
            settings = {"mixup": config.mixup, "cutmix": config.cutmix, "prob": config.mixup_prob}
            mix = draw_mix(self.seed, place.epoch, place.batch, side=side, **settings)
            images = mix_images(images, mix)
        if mix is None and config.label_smoothing == 0:
            return images, labels
        return images, soft_targets(labels, self.images.num_classes, config.label_smoothing, mix)

    def _noise(self, images: Tensor, threat: Threat | None) -> Tensor | None:
        attack, place = self.config.attack, self.state.position
        if threat is None or attack is None:
            return None
        if threat.loss != "trades" and not (threat.kind == "fgsm" and attack.random_start):
            return None
        first = self.world.share(self.config.batch_size).start
        normal = threat.loss == "trades"
        return row_noise(images, first, seed=self.seed, epoch=place.epoch, batch=place.batch, normal=normal)

    def _between_steps(self) -> None:
        """Progress, the look at the loss, checkpoints within an epoch, and requests to end."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look()
            if self.outside():
                self.stop.received = self.stop.received or signal.SIGTERM
        if self.stop.received is not None:
            self._save(wait=True)
            self.stop.obey()
        if now - self._saved >= 60 * self.config.checkpoint_minutes:
            self._save()

    def _look(self) -> None:
        place, per_epoch = self.state.position, self.images.train.num_batches
        loss = self.state.meter.loss()
        require_finite(loss, what="loss", epoch=place.epoch, batch=place.batch)
        if self.report is not None:
            done = (place.epoch * per_epoch + place.batch) * self.config.batch_size
            total = self.config.epochs * per_epoch * self.config.batch_size
            note = f"epoch {place.epoch + 1}/{self.config.epochs}, loss {loss:.3f}"
            self.report.progress(phase="train", done=done, total=total, note=note)

    def _end_epoch(self) -> None:
        state, place = self.state, self.state.position
        figures = state.meter.epoch()
        require_finite(figures["loss"], what="loss", epoch=place.epoch, batch=place.batch)
        entry: dict[str, Any] = {
            "epoch": place.epoch + 1,
            "step": place.step,
            "lr": self.lr(place.epoch + 1),
            **figures,
        }
        last = place.epoch + 1 == self.config.epochs
        if last or (place.epoch + 1) % self.config.probe.every == 0:
            entry.update(self.probe())
        state.history.append(entry)
        self._remember_best(entry)
        place.epoch, place.batch = place.epoch + 1, 0
        state.meter.reset()
        if self.report is not None:
            self.report.log_metrics({k: v for k, v in entry.items() if k not in ("epoch", "step")}, step=entry["epoch"])
        if "clean_accuracy" in entry:
            watch(state.history, self.config.health)
        if time.monotonic() - self._saved >= self.config.checkpoint_seconds and not last:
            self._save()

    def probe(self) -> dict[str, float]:
        """The averaged weights' accuracies on the held-out images."""
        return probe(self.state.ema.model, held_out_batches(self.images, self.world.device), self.config, self.world)

    def _remember_best(self, entry: dict[str, Any]) -> None:
        """Keeps the weights of the best probe: robust accuracy first, clean accuracy second, the earlier on a tie."""
        if self.config.select != "best" or "clean_accuracy" not in entry:
            return
        score = [entry.get("robust_accuracy", 0.0), entry["clean_accuracy"]]
        best = self.state.best
        if not best or score > best["score"]:
            self.state.best = {"epoch": entry["epoch"], "score": score, "runner_up": best.get("epoch")}
            weights = self.state.ema.model.state_dict()
            self.state.best_weights = {name: t.detach().to("cpu", copy=True) for name, t in weights.items()}

    def _save(self, *, wait: bool = False) -> None:
        """A checkpoint of the present state; while an earlier one is being written, only where it must be taken."""
        if self.checkpoints is None or (self.checkpoints.busy and not wait):
            return
        place = self.state.position
        require_finite(self.state.meter.loss(), what="loss", epoch=place.epoch, batch=place.batch)
        self.checkpoints.save(self.state.snapshot(), wait=wait)
        self._saved = time.monotonic()
