"""The difference of two models on the same images: a closed form and an exact sum, the same on every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]


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


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], first_interval: Interval, second_interval: Interval
) -> PairedDifference:
    """Compares two lists of verdicts image by image.

    The interval is Newcombe's square-and-add with the correlation of the pair (Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", without continuity correction).

    Args:
        first_interval: Wilson's 95 % interval of the first share; `second_interval` of the second.

    Raises:
        ValueError: no images, or lists of different lengths.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"verdicts of shapes {a.shape} and {b.shape} make no pairs")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    phi = _correlation(int((a & b).sum()), only_a, only_b, int((~a & ~b).sum()))
    p, q = float(a.mean()), float(b.mean())
    down = _square_and_add(p - first_interval[0], second_interval[1] - q, phi)
    up = _square_and_add(first_interval[1] - p, q - second_interval[0], phi)
    interval = (max(-1.0, p - q - down), min(1.0, p - q + up))
    return PairedDifference(p - q, interval, only_a, only_b, len(a), mcnemar(only_a, only_b))


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
