"""Statistics of accuracies: intervals, paired differences of two models, and power.

- `wilson`: the interval of one accuracy on n images.
- `paired_difference`: two models on the same images, by a closed form and an exact sum: the same on every run.
- `smallest_difference` and `images_needed`: what n images can show. Both use the criterion of the comparison itself,
  `PairedDifference.shows`.

Only the standard library is used: the slim pipeline image has no SciPy, and SciPy has no paired Newcombe interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""

INTERVAL_NAME = "Wilson score interval, 95 %"


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns Wilson's score interval (low, high) of a share (Wilson 1927); within [0, 1] also for 0 and n successes.

    Raises:
        ValueError: n is not positive, or successes lie outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    share, square = successes / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


Interval = tuple[float, float]

SIGNIFICANT = 0.05
"""Largest p-value of the exact test at which a difference counts as shown."""


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of a first model minus that of a second one, measured on the same images.

    Attributes:
        difference: in [-1, 1].
        interval: 95 % interval of the difference.
        only_first: number of images that only the first model gets right; `only_second` likewise.
        n: number of images.
        p_value: of the two-sided exact McNemar test: the probability that two equally good models disagree at least
            this one-sidedly.
    """

    difference: float
    interval: Interval
    only_first: int
    only_second: int
    n: int
    p_value: float

    @property
    def shows(self) -> bool:
        """Whether these images show a difference: the interval excludes 0 and the exact test is significant at 5 %.

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
    """Compares two models image by image.

    Args:
        first: whether the first model got each of the n images right; `second` likewise, in the same order.
        first_interval: Wilson's 95 % interval of the first accuracy, `second_interval` of the second; computed if not
            given.

    Raises:
        ValueError: there are no images, or the lists have different lengths.
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
    """Returns the difference, given the numbers of images that both models, one of them, or neither got right.

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
    """Returns the two-sided p-value of the exact McNemar test, a sign test on the images on which the two disagree."""
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


MOST_IMAGES = 1_000_000
"""Upper bound of the search for a number of images; no evaluation has more."""


def smallest_difference(n: int, right: int, disagreeing: int) -> float | None:
    """Returns the smallest difference of accuracies that a comparison on these images could have shown.

    Args:
        n: number of images.
        right: number of images that the baseline gets right.
        disagreeing: number of images on which the two models differ. The function searches for the smallest net
            difference that would be significant with this many disagreements. If none is, it allows more of them, all
            in one direction; if the counts do not allow this many, it takes fewer.

    Returns:
        |accuracy of one - accuracy of the other|, in (0, 1]; None if no difference on n images would be significant.
    """
    for net in range(1, n + 1):
        for gain in (True, False):
            most_for, most_against = (n - right, right) if gain else (right, n - right)
            # An image can only be gained if the baseline gets it wrong, and only be lost if it gets it right.
            against = min(max(0, disagreeing - net) // 2, most_for - net, most_against)
            if against >= 0 and _shows(n, right, net, against, gain):
                return net / n
    return None


def _shows(n: int, right: int, net: int, against: int, gain: bool) -> bool:
    gained, lost = (net + against, against) if gain else (against, net + against)
    return from_counts(right - lost, gained, lost, n - right - gained).shows


def images_needed(both: int, only_first: int, only_second: int, neither: int) -> int | None:
    """Returns how many images would show this difference if the proportions stayed the same, rounded up to two digits.

    Returns:
        None if the difference is 0, or if more than `MOST_IMAGES` would be needed.
    """
    n = both + only_first + only_second + neither
    if only_first == only_second:
        return None

    def shows(factor: float) -> bool:
        a, b, c, d = (round(factor * cell) for cell in (both, only_first, only_second, neither))
        return from_counts(a, b, c, d).shows

    factor = 1.0
    while not shows(factor):
        factor *= 1.05
        if factor * n > MOST_IMAGES:
            return None
    images = round(factor * n)
    unit = 10 ** max(0, len(str(images)) - 2)
    return -(-images // unit) * unit
