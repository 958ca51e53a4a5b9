"""Watches an attack from outside: which images each of its parts got, for how long, and how far it has come.

The library returns neither verdicts nor times. Its parts receive the survivors in the order of the data, so what a
part was given tells what the part before it broke.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from components.evaluate.library import STAGES, TITLES

Progress = Callable[[str, float], None]
"""Called with the name of the attack at work and the share (0 to 1) of the whole that is done; may raise to stop."""

CALLS = {"apgd-ce": 102, "apgd-t": 919, "fab-t": 1828, "square": 5003}
COSTS = {"apgd-ce": 220, "apgd-t": 2000, "fab-t": 2900, "square": 5003}
"""Model calls, and their price in forward passes, of each part on a surviving batch; only for the progress shown."""


class Watched(nn.Module):
    """The attacked model: fp32 logits in a fresh tensor, channels-last inside, every call reported.

    A fresh tensor, because Square writes -inf into what it gets.
    """

    def __init__(self, model: nn.Module, called: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.called = model, called

    def forward(self, images: Tensor) -> Tensor:
        self.called()
        return self.model(images.to(memory_format=torch.channels_last)).float().clone()


@dataclass
class Part:
    """One of an attack's parts on one block: rows it was given, rows it broke, and seconds."""

    name: str
    rows: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    seconds: float = 0.0
    calls: int = 0


class Watch:
    """Follows one block through an attack.

    Args:
        attack: configuration word of the attack.
        images: the block (B, C, H, W).
        progress: told while the model is called.
    """

    def __init__(self, attack: str, images: Tensor, progress: Progress | None = None) -> None:
        self.parts = [Part(name) for name in STAGES[attack]]
        self._images, self._progress = images, progress
        self._current: Part | None = None

    def called(self) -> None:
        """To be called with every call of the model."""
        part = self._current
        if part is not None:
            part.calls += 1
        if self._progress is not None:
            self._progress(TITLES[part.name] if part else "clean", self._share(part))

    def attach(self, library: Any) -> None:
        """Wraps the `perturb` of the library's parts that run."""
        objects = {
            "apgd-ce": library.apgd,
            "apgd-t": library.apgd_targeted,
            "fab-t": library.fab,
            "square": library.square,
        }
        for part in self.parts:
            self._wrap(part, objects[part.name])

    def settle(self, robust: list[bool]) -> None:
        """Says which rows each part broke, from what the next one was given and the final verdicts."""
        final = [row for row, survives in enumerate(robust) if survives]
        given = [part.rows for part in self.parts]
        for position, part in enumerate(self.parts):
            later = given[position + 1] if any(given[position + 1 :]) else final
            part.broken = [row for row in part.rows if row not in set(later)]

    def _wrap(self, part: Part, attack: Any) -> None:
        perturb = attack.perturb

        def watched(images: Tensor, labels: Tensor) -> Tensor:
            part.rows += self._rows_of(images, part.rows[-1] + 1 if part.rows else 0)
            self._current, start = part, time.monotonic()
            try:
                return perturb(images, labels)
            finally:
                part.seconds += time.monotonic() - start
                self._current = None

        attack.perturb = watched

    def _rows_of(self, images: Tensor, first: int) -> list[int]:
        rows, row = [], first
        for image in images:
            while not torch.equal(self._images[row], image):
                row += 1
            rows.append(row)
            row += 1
        return rows

    def _share(self, part: Part | None) -> float:
        total = sum(COSTS[p.name] for p in self.parts)
        if part is None:
            return 0.0 if not self.parts[0].calls else 1.0
        before = sum(COSTS[p.name] for p in self.parts[: self.parts.index(part)])
        return min(1.0, (before + COSTS[part.name] * min(1.0, part.calls / CALLS[part.name])) / total)
