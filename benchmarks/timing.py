"""Times pieces of work in turns: A B C A B C ..., so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each piece of work, one entry per round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Returns the median of one piece's seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Returns the time of `name` relative to `to`: the median of the rounds' ratios."""
        return statistics.median(one / other for one, other in zip(self.seconds[name], self.seconds[to]))


def side_by_side(
    works: Mapping[str, Work],
    *,
    rounds: int,
    warmup: int = 1,
    in_subprocess: Mapping[str, Callable[[], float]] | None = None,
) -> Times:
    """Runs every piece of work once per round; the first `warmup` rounds are not counted.

    Args:
        in_subprocess: pieces that another process times (`benchmarks.subprocess_timer`); their turns come last.
    """
    turns = {name: lambda work=work: timed(work) for name, work in works.items()} | dict(in_subprocess or {})
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(warmup + rounds):
        for name, turn in turns.items():
            spent = turn()
            if number >= warmup:
                seconds[name].append(spent)
    return Times(seconds)


def timed(work: Work) -> float:
    """Returns the seconds of one piece of work, including its work on a GPU."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
