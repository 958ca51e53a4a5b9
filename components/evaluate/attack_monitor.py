"""Monitors an attack from outside: which images each of its parts received, how long it took, and its progress.

Libraries return neither verdicts nor times. The parts of an attack receive the surviving images in the order of the
data, so the images that a part received show which ones the part before it broke.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from components.threats import AttackPart

Progress = Callable[[str, float], None]
"""Called with the title of the running part and the finished share (0 to 1) of the attack; may raise to stop it."""

Perturb = Callable[[Tensor, Tensor], Tensor]
"""One part of an attack: images (B, C, H, W) and labels (B,) -> adversarial images."""


class MonitoredModel(nn.Module):
    """The attacked model: fp32 logits in a fresh tensor, channels-last inside, every call reported.

    A fresh tensor, because Square writes -inf into the logits that it receives.
    """

    def __init__(self, model: nn.Module, called: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.called = model, called

    def forward(self, images: Tensor) -> Tensor:
        self.called()
        return self.model(images.to(memory_format=torch.channels_last)).float().clone()


@dataclass
class PartRecord:
    """What one part of an attack did to one block: rows it received, rows it broke, seconds, calls of the model."""

    part: AttackPart
    rows: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    seconds: float = 0.0
    calls: int = 0


class AttackMonitor:
    """Follows one block through an attack.

    Args:
        parts: of the attack, in order.
        images: the block (B, C, H, W).
        progress: called with every call of the model.
    """

    def __init__(self, parts: Sequence[AttackPart], images: Tensor, progress: Progress | None = None) -> None:
        self.records = [PartRecord(part) for part in parts]
        self._images, self._progress = images, progress
        self._current: PartRecord | None = None

    def called(self) -> None:
        """Counts a call of the model; the model must call it every time."""
        record = self._current
        if record is not None:
            record.calls += 1
        if self._progress is not None:
            self._progress(record.part.title if record else "clean", self._share(record))

    def monitored(self, part: AttackPart, perturb: Perturb) -> Perturb:
        """`perturb` with the rows that it receives and its time recorded as those of `part`."""
        record = next(record for record in self.records if record.part == part)

        def recorded(images: Tensor, labels: Tensor) -> Tensor:
            record.rows += self._rows_of(images, record.rows[-1] + 1 if record.rows else 0)
            self._current, start = record, time.monotonic()
            try:
                return perturb(images, labels)
            finally:
                record.seconds += time.monotonic() - start
                self._current = None

        return recorded

    def assign_broken(self, robust: list[bool]) -> None:
        """Derives which rows each part broke from the rows that the next one received and the final verdicts.

        Args:
            robust: of every row of the block.
        """
        final = [row for row, survives in enumerate(robust) if survives]
        received = [record.rows for record in self.records]
        for position, record in enumerate(self.records):
            later = received[position + 1] if any(received[position + 1 :]) else final
            record.broken = [row for row in record.rows if row not in set(later)]

    def _rows_of(self, images: Tensor, first: int) -> list[int]:
        rows, row = [], first
        for image in images:
            while not torch.equal(self._images[row], image):
                row += 1
            rows.append(row)
            row += 1
        return rows

    def _share(self, record: PartRecord | None) -> float:
        total = sum(one.part.forwards for one in self.records)
        if record is None:
            return 0.0 if not self.records[0].calls else 1.0
        before = sum(one.part.forwards for one in self.records[: self.records.index(record)])
        share = min(1.0, record.calls / record.part.model_calls)
        return min(1.0, (before + record.part.forwards * share) / total)
