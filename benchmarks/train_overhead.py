"""The overhead of the training loop: bookkeeping, checkpoints, and the time to the first step.

    python benchmarks/train_overhead.py [--json] [--quick]

The real loop, with its meters, live metrics in MLflow, monitoring and checkpoints, takes turns with bare steps (attack,
update, EMA) on the same batches in memory: an epoch of the loop, then as many bare steps. Adversarial
images of 32 px, batch 256, convnext_micro: a step takes about 0.3 s on two cores. No validation: it is an evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Run as a file, Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import Row, row, show
from benchmarks.small_training import Home
from benchmarks.timing import side_by_side, timed
from components.data.loader import Batch
from components.store.execute import StageJob
from components.train import loop, stage
from components.train.batch import attack_at, mixed
from components.train.images import to_device
from components.train.loop import Training
from components.train.optimizer import set_lr
from components.train.train_step import train_step


class CallTimer:
    """Times every call of `owner.name`."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds: list[float] = []
        self._work: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._work(*args, **options)
        finally:
            self.seconds.append(time.perf_counter() - started)


class Turns:
    """Replaces a loader: gives an epoch's batches from memory, and runs as many bare steps before each epoch.

    The time between two calls of `epoch`, less that of the bare steps, is the loop's.
    """

    def __init__(self, batches: list[Batch], bare: Callable[[], None]) -> None:
        self.num_batches, self.engine, self._batches, self._bare = len(batches), "memory", batches, bare
        self.loop_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._started = 0.0

    @contextlib.contextmanager
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Iterator[Batch]]:
        """See `Loader.epoch`."""
        if epoch:
            self.loop_seconds.append(time.perf_counter() - self._started)
        self.bare_seconds.append(timed(self._bare))
        self._started = time.perf_counter()
        yield iter(self._batches[start_batch:])


def bare_epoch(home: Home, batches: list[Batch]) -> Callable[[], None]:
    """Makes an epoch of bare steps of another training on these batches."""
    training = home.training(home.job(epochs=1))
    state, config = training.state, training.config
    set_lr(state.optimizer, training.lr(0.0))
    classes, attack = training.images.num_classes, attack_at(config, 0.0)
    ready = [
        mixed(config, *to_device(batch, home.distributed.device), classes=classes, seed=0, epoch=0, batch=0)
        for batch in batches
    ]

    def epoch() -> None:
        for images, targets in ready:
            train_step(
                state.model,
                state.optimizer,
                images,
                targets,
                attack=attack,
                precision=state.precision,
                global_batch=config.batch_size,
            )
            state.ema.update()

    return epoch


@contextlib.contextmanager
def watched_steps(training: Training) -> Iterator[tuple[CallTimer, CallTimer]]:
    """Times the loop's steps and EMA updates."""
    real = loop.train_step
    try:
        yield CallTimer(loop, "train_step"), CallTimer(training.state.ema, "update")
    finally:
        loop.train_step = real


def loop_rows(home: Home, epochs: int) -> list[Row]:
    """Compares the loop with bare steps, with checkpoints as often as in recipes."""
    training = home.training(home.job(epochs=epochs + 1))
    with training.images.train.epoch(0) as images:
        batches = list(images)
    turns: Any = Turns(batches, bare_epoch(home, batches))
    training.images.train = turns
    with watched_steps(training) as (steps, averagings):
        training.run()
    per_epoch = len(batches)
    shares = [one / other - 1 for one, other in zip(turns.loop_seconds[1:], turns.bare_seconds[1:])]
    inside = sum(steps.seconds[per_epoch:-per_epoch]) + sum(averagings.seconds[per_epoch:-per_epoch])
    return [
        row("a bare step", statistics.median(turns.bare_seconds) / per_epoch, "s"),
        row("loop beside bare steps, extra time", 100 * statistics.median(shares), "%", most=2.0),
        row("loop, time outside its own steps", 100 * (sum(turns.loop_seconds[1:]) / inside - 1), "%", most=2.0),
    ]


def checkpoint_rows(home: Home, epochs: int) -> tuple[list[Row], StageJob]:
    """Returns the cost of a checkpoint for the training thread, and the job, which has one before its last epoch."""
    job = home.job(epochs=epochs, checkpoint_min_interval_s=0)
    training = home.training(job)
    assert training.checkpoints is not None
    copies, saves = CallTimer(training.state, "snapshot"), CallTimer(training.checkpoints, "save")
    with watched_steps(training) as (steps, _):
        training.run()
    training.checkpoints.close()
    assert training.checkpoints.latest() is not None, "the job needs a checkpoint to resume from"
    stalls = [one + other for one, other in zip(copies.seconds, saves.seconds)]
    step = statistics.median(steps.seconds)
    return [
        row("checkpoint, training stands still, worst", max(stalls) / step, "steps", most=1.0),
        row("slowest step / median step, checkpoints being written", max(steps.seconds[1:]) / step, "ratio"),
    ], job


class _Reached(Exception):
    """The first step is about to begin."""


def start_rows(home: Home, job: StageJob, rounds: int) -> list[Row]:
    """Returns the time from a stage's start to its first step: resumed from `job`, and new."""

    def reach(*args: object, **options: object) -> None:
        raise _Reached

    def start(one: StageJob) -> None:
        with contextlib.suppress(_Reached), contextlib.redirect_stdout(None):
            stage.work(one, home.distributed)

    real, fresh = loop.train_step, [home.job(epochs=2) for _ in range(rounds + 1)]
    loop.train_step = reach
    try:
        times = side_by_side({"new": lambda: start(fresh.pop()), "again": lambda: start(job)}, rounds=rounds)
    finally:
        loop.train_step = real
    return [
        row("start to first step, new", times.median("new"), "s"),
        row("start to first step, continued / new", times.ratio("again", "new"), "ratio", most=1.2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a batch of four, once: whether it runs, not how fast")
    options = parser.parse_args()
    batch, epochs, rounds = (4, 2, 1) if options.quick else (256, 12, 7)
    # A stage prints its progress to standard output, which is for the rows.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        home = Home(Path(folder), network="convnext_micro", batch=batch)
        rows = loop_rows(home, epochs)
        saved, job = checkpoint_rows(home, 3)
        rows += saved + start_rows(home, job, rounds)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
