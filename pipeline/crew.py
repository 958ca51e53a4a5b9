"""Works ahead of KFP on this machine: stages whose parents are complete run side by side.

KFP's local runner walks the graph one step after the other. Stages that do not need each other leave most of a machine
idle then: a small network's training hardly gains from a second core. So a crew of threads brings every stage to
completion as soon as its parents are, longest way to the end first, and KFP's own step for it (`pipeline.step`) takes
what the crew hands over. A stage is decided, claimed, launched and checked exactly as a step alone would do it.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from components.process import available_cores
from pipeline.handover import hand_failure, hand_over
from pipeline.recipe import Recipe, Stage

_AT_ONCE = 2
"""Stages side by side by default; more would only divide the same cores and memory."""

Bring = Callable[[str, list[str]], str]
"""Brings the named stage to completion, given its parents' tokens, and returns its own token."""


def lanes_for(recipe: Recipe, wanted: int = 0) -> int:
    """How many stages may run at once.

    One where a GPU would be shared or a stage starts a Ray of its own; the person's number where one is given.
    """
    if wanted:
        return wanted
    own_ray = any(getattr(stage.config, "num_workers", 0) for stage in recipe.stages.values())
    if own_ray or gpus_here():
        return 1
    return min(_AT_ONCE, available_cores())


def gpus_here() -> int:
    """NVIDIA devices of this machine, by their device files: this side of the house does not import torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def weight(stage: Stage) -> float:
    """How long a stage takes against another, roughly: only the order of what is ready follows from it."""
    return stage.kind.seconds(stage.config)


def distances(recipe: Recipe) -> dict[str, float]:
    """For every stage the weight of the longest way from it to an end of the graph, itself included."""
    far: dict[str, float] = {}
    for stage in reversed(list(recipe.stages.values())):
        after = (far[other.name] for other in recipe.stages.values() if stage.name in other.parents.values())
        far[stage.name] = weight(stage) + max(after, default=0.0)
    return far


class Crew:
    """Brings all stages of a recipe to completion and leaves what each hands on in a folder.

    Args:
        folder: where the results are handed over.
        bring: does one stage.
        lanes: stages at once.
        tokens: of the stages that need no work, by name.
        give_up: called with the cause when not even a failure can be handed over (a full disk); must end the process,
            since KFP would wait for ever.

    Attributes:
        failed: the stage that failed first; empty while none has.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        bring: Bring,
        lanes: int,
        tokens: Mapping[str, str] | None = None,
        give_up: Callable[[str], None] | None = None,
    ) -> None:
        self._recipe, self._folder, self._bring = recipe, folder, bring
        self._give_up = give_up or end_this_process
        self._tokens = dict(tokens or {})
        for name, token in self._tokens.items():
            hand_over(folder, name, token)
        self._far = distances(recipe)
        self._waiting = {name: stage for name, stage in recipe.stages.items() if name not in self._tokens}
        self._ready: list[tuple[float, int, str]] = []
        self._changed = threading.Condition()
        self.failed = ""
        for lane in range(lanes):
            # Daemons: when KFP has seen a failure and this process ends, nobody waits for the other lane.
            threading.Thread(target=self._work, daemon=True, name=f"lane-{lane + 1}").start()

    def _work(self) -> None:
        while (name := self._next()) is not None:
            try:
                parents = [self._tokens[parent] for parent in self._recipe.stages[name].parents.values()]
                self._complete(name, self._bring(name, parents))
            except BaseException as error:
                self._fail(name, error)
                return

    def _next(self) -> str | None:
        """The ready stage with the longest way to go; None when nothing is left or one has failed."""
        with self._changed:
            while True:
                if self.failed:
                    return None
                self._sort_ready()
                if self._ready:
                    return heapq.heappop(self._ready)[2]
                if not self._waiting:
                    return None
                self._changed.wait()

    def _sort_ready(self) -> None:
        order = {name: place for place, name in enumerate(self._recipe.stages)}
        for name, stage in list(self._waiting.items()):
            if all(parent in self._tokens for parent in stage.parents.values()):
                del self._waiting[name]
                heapq.heappush(self._ready, (-self._far[name], order[name], name))

    def _complete(self, name: str, token: str) -> None:
        hand_over(self._folder, name, token)
        with self._changed:
            self._tokens[name] = token
            self._changed.notify_all()

    def _fail(self, name: str, error: BaseException) -> None:
        """Hands the error to the stage and to all that never begin now: KFP asks for them in an order of its own."""
        with self._changed:
            never = [*self._waiting, *(ready for _, _, ready in self._ready)]
            self._waiting.clear()
            self._ready.clear()
            self.failed = self.failed or name
            self._changed.notify_all()
        try:
            for stage in (name, *never):
                hand_failure(self._folder, stage, error)
        except BaseException as lost:
            self._give_up(f"{name}: {error} (which could not be handed on: {lost})")


def end_this_process(cause: str) -> NoReturn:
    """Ends this process at once, other threads included; the command that started it ends what is left."""
    try:
        print(f"error: {cause}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)
