"""The difference of two models on the same images: a closed form and an exact sum, the same on every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from components.statistics.shares import wilson

Interval = tuple[float, float]

SIGNIFICANT = 0.05
"""The p-value of the exact test above which no difference is called shown."""


@dataclass(frozen=True)
class PairedDifference:
    """Share of the first model minus share of the second.

    Attributes:
        interval: 95 % interval of the difference.
        only_first: images that only the first model gets right; `only_second` likewise.
        p_value: exact McNemar test, two-sided: how often equal models would disagree so one-sidedly.
    """

    difference: float
    interval: Interval
    only_first: int
    only_second: int
    n: int
    p_value: float

    @property
    def shows(self) -> bool:
        """Whether these images show a difference: the interval leaves 0 out and the exact test agrees at 5 %.

        Both, because with few images on which the models disagree the interval is too narrow: of 10 images, 3 that only
        one model gets right put it above 0, and equal models do that every fourth time (p = 0.25).
        """
        return (self.interval[0] > 0 or self.interval[1] < 0) and self.p_value <= SIGNIFICANT


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    first_interval: Interval | None = None,
    second_interval: Interval | None = None,
) -> PairedDifference:
    """Compares two lists of verdicts image by image.

    Args:
        first: whether the first model got each of the n images right; `second` likewise, in the same order.
        first_interval: Wilson's 95 % interval of the first share, `second_interval` of the second; worked out from the
            verdicts where not given.

    Raises:
        ValueError: no images, or lists of different lengths.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} verdicts make no pairs")
    counts = [0, 0, 0, 0]
    for one, other in zip(first, second, strict=True):
        counts[2 * (not one) + (not other)] += 1
    both, only_first, only_second, neither = counts
    return from_counts(both, only_first, only_second, neither, first_interval, second_interval)


def from_counts(
    both: int,
    only_first: int,
    only_second: int,
    neither: int,
    first_interval: Interval | None = None,
    second_interval: Interval | None = None,
) -> PairedDifference:
    """The difference, from how many images both models, one of them, or neither got right.

    The interval is Newcombe's square-and-add with the correlation of the pair (Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", without continuity correction).
    """
    n = both + only_first + only_second + neither
    low_p, high_p = first_interval or wilson(both + only_first, n)
    low_q, high_q = second_interval or wilson(both + only_second, n)
    phi = _correlation(both, only_first, only_second, neither)
    p, q = (both + only_first) / n, (both + only_second) / n
    down = _square_and_add(p - low_p, high_q - q, phi)
    up = _square_and_add(high_p - p, q - low_q, phi)
    interval = (max(-1.0, p - q - down), min(1.0, p - q + up))
    return PairedDifference(p - q, interval, only_first, only_second, n, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact McNemar test: a fair coin thrown for every image on which the two disagree."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, tail / 2 ** (total - 1))


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    return (both * neither - only_a * only_b) / math.sqrt(margins) if margins else 0.0


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))
