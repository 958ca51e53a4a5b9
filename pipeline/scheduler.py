"""Decides which stage of a run on this machine starts next: parents first, then the longest path to the end.

A network's small training hardly gains from a second core, so stages that do not need each other run side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from components.process import available_cores
from pipeline.recipe import Recipe

_MAX_PARALLEL = 2
"""Stages side by side by default; more would only divide the same cores and memory."""

RunStage = Callable[[str, list[str]], str]
"""Brings the named stage to completion, given its parents' tokens, and returns its own token."""


def max_parallel(recipe: Recipe, jobs: int = 0) -> int:
    """Returns how many stages may run at once.

    One where a GPU would be shared or a stage starts a Ray of its own; `jobs` if it is not 0.
    """
    if jobs:
        return jobs
    own_ray = any(getattr(stage.config, "num_workers", 0) for stage in recipe.stages.values())
    if own_ray or num_gpus():
        return 1
    return min(_MAX_PARALLEL, available_cores())


def num_gpus() -> int:
    """Counts this machine's NVIDIA devices by their device files: `pipeline` does not import torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def critical_path(recipe: Recipe) -> dict[str, float]:
    """Returns for every stage the estimated seconds of the longest path from it to the end of the graph."""
    seconds: dict[str, float] = {}
    for stage in reversed(list(recipe.stages.values())):
        after = (seconds[other.name] for other in recipe.stages.values() if stage.name in other.parents.values())
        seconds[stage.name] = stage.kind.seconds(stage.config) + max(after, default=0.0)
    return seconds


class Scheduler:
    """Runs all stages of a recipe in threads. After a failure no other stage starts.

    Args:
        run_stage: brings one stage to completion; called in the threads.
        max_parallel: how many stages run at once.
        tokens: tokens of the stages that are complete already, by name.

    Attributes:
        tokens: tokens of the complete stages, by name.
        failed: the stage whose failure came first; empty while there is none.
        error: its exception.
    """

    def __init__(
        self, recipe: Recipe, run_stage: RunStage, max_parallel: int, tokens: Mapping[str, str] | None = None
    ) -> None:
        self.tokens = dict(tokens or {})
        self.failed = ""
        self.error: BaseException | None = None
        self._stages, self._run_stage = recipe.stages, run_stage
        self._critical_path = critical_path(recipe)
        self._waiting = [name for name in recipe.stages if name not in self.tokens]
        self._changed = threading.Condition()
        # Daemons: a thread that is stuck must not keep an interrupted command alive.
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"stages-{number + 1}")
            for number in range(max_parallel)
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits until all stages have ended, at most some seconds; returns whether they have."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (name := self._next()) is not None:
            try:
                parents = [self.tokens[parent] for parent in self._stages[name].parents.values()]
                token = self._run_stage(name, parents)
            except BaseException as error:
                self._fail(name, error)
                return
            with self._changed:
                self.tokens[name] = token
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Returns the ready stage with the longest path; None if none is left or one has failed."""
        with self._changed:
            while self._waiting and not self.failed:
                ready = [name for name in self._waiting if self._is_ready(name)]
                if ready:
                    # `max` keeps the recipe's order among equals.
                    name = max(ready, key=self._critical_path.__getitem__)
                    self._waiting.remove(name)
                    return name
                self._changed.wait()
            return None

    def _is_ready(self, name: str) -> bool:
        return all(parent in self.tokens for parent in self._stages[name].parents.values())

    def _fail(self, name: str, error: BaseException) -> None:
        with self._changed:
            if not self.failed:
                self.failed, self.error = name, error
            self._changed.notify_all()
