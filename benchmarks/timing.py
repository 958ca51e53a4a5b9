"""Timing pieces of work side by side: A B C A B C ..., so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each piece of work, one entry a round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """The middle of one piece's seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as long `name` takes as `to`: the middle of the rounds' own ratios."""
        return statistics.median(one / other for one, other in zip(self.seconds[name], self.seconds[to]))


def side_by_side(
    works: Mapping[str, Work],
    *,
    rounds: int,
    warmup: int = 1,
    elsewhere: Mapping[str, Callable[[], float]] | None = None,
) -> Times:
    """Runs every piece of work once a round; the first `warmup` rounds are not counted.

    Args:
        elsewhere: pieces that another process does and times (`benchmarks.elsewhere`); their turns come last.
    """
    turns = {name: lambda work=work: timed(work) for name, work in works.items()} | dict(elsewhere or {})
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(warmup + rounds):
        for name, turn in turns.items():
            spent = turn()
            if number >= warmup:
                seconds[name].append(spent)
    return Times(seconds)


def timed(work: Work) -> float:
    """Seconds of one piece of work, a GPU's share included."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
