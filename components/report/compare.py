"""What two robust accuracies can and cannot say about each other.

Two models measured on the same images are compared image by image: the paired difference, shown where its 95 %
interval leaves out 0 and the exact test of the images on which the models disagree says so too. Only figures without
common images are held against each other by their own intervals, which is stricter: intervals that do not overlap
differ; intervals that do may still differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from components.report.figures import NBSP, count, interval, number, percent, points
from components.report.measurement import ATTACKS, Measurement, attack_order
from components.report.verdicts import same_images, unlike
from components.statistics import PairedDifference, paired_difference

Outcome = Literal["higher", "lower", "indistinct", "unlike", "unknown"]


@dataclass(frozen=True)
class Comparison:
    """The outcome for `first` as seen from `second`, with the sentence that says it.

    `paired` is the difference on the common images; None where there are none.
    """

    first: Measurement
    second: Measurement
    outcome: Outcome
    words: str
    paired: PairedDifference | None = None

    @property
    def difference(self) -> float | None:
        """First minus second, as a fraction; on the common images where there are such."""
        if self.paired is not None:
            return self.paired.difference
        if self.first.robust is None or self.second.robust is None:
            return None
        return self.first.robust - self.second.robust


def compare(first: Measurement, second: Measurement) -> Comparison:
    """Compare two figures; those under different conditions are refused, and the condition is named.

    One difference may stand: the lower figure comes from a shorter attack. The longer one, of which the shorter is a
    part, could only lower it further, so that the order of the two is certain all the same.
    """
    differing = _differing(first, second)
    if differing and first.under[:-1] != second.under[:-1]:
        return Comparison(first, second, "unlike", f"not comparable: {differing}")
    if first.verdicts and second.verdicts and (words := unlike(first.verdicts.stage, second.verdicts.stage)):
        return Comparison(first, second, "unlike", f"not comparable: they differ in {words}")
    found = _on_the_same_images(first, second) or _by_intervals(first, second)
    if differing and not _holds_all_the_same(found):
        return Comparison(first, second, "unlike", f"not comparable: {differing}")
    return found


def overlaps(first: Measurement, second: Measurement) -> bool:
    """Whether the two intervals share a point; a missing bound counts as the end of the scale."""
    low, high = max(first.low or 0.0, second.low or 0.0), min(_top(first), _top(second))
    return low <= high


def _top(row: Measurement) -> float:
    return 1.0 if row.high is None else row.high


def _on_the_same_images(first: Measurement, second: Measurement) -> Comparison | None:
    """The paired comparison on the first images that both have; None where they have none in common."""
    ours, theirs = first.verdicts, second.verdicts
    if ours is None or theirs is None or not same_images(ours.stage, theirs.stage):
        return None
    n = min(len(ours.images), len(theirs.images))
    if not n or list(ours.images[:n]) != list(theirs.images[:n]):
        return None
    found = paired_difference(ours.robust[:n], theirs.robust[:n])
    outcome: Outcome = ("higher" if found.difference > 0 else "lower") if found.shows else "indistinct"
    return Comparison(first, second, outcome, _paired_words(found), found)


def _paired_words(found: PairedDifference) -> str:
    gap = points(found.difference)
    low, high = (points(bound) for bound in found.interval)
    images = f"on the same {count(found.n)} images"
    first = f"{found.only_first} image{'' if found.only_first == 1 else 's'}"
    why = f"95{NBSP}% {low} to {high}; {first} against {found.only_second}, {_p(found.p_value)}"
    if not found.shows:
        return f"no difference shown {images} ({gap}{NBSP}points, {why})"
    return f"{'higher' if found.difference > 0 else 'lower'} by {gap.lstrip('+−')} points {images} ({why})"


def _p(value: float) -> str:
    return f"p{NBSP}<{NBSP}0.001" if value < 0.001 else f"p{NBSP}={NBSP}{value:.3f}"


def _by_intervals(first: Measurement, second: Measurement) -> Comparison:
    bounds = [number(value) for value in (first.low, first.high, second.low, second.high)]
    if None in (first.robust, second.robust, *bounds):
        return Comparison(first, second, "unknown", "no interval recorded, so nothing can be concluded")
    difference = (first.robust or 0.0) - (second.robust or 0.0)
    gap = points(difference)
    if overlaps(first, second):
        words = f"no difference shown by the two intervals alone at {_sizes(first, second)} ({gap}{NBSP}points)"
        return Comparison(first, second, "indistinct", f"{words}; there are no common images to compare")
    outcome: Outcome = "higher" if difference > 0 else "lower"
    return Comparison(first, second, outcome, f"{outcome} by {gap.lstrip('+−')} points; the intervals do not overlap")


def _holds_all_the_same(found: Comparison) -> bool:
    if found.outcome not in ("higher", "lower"):
        return False
    over, under = (found.first, found.second) if found.outcome == "higher" else (found.second, found.first)
    known = over.attack in ATTACKS and under.attack in ATTACKS
    return known and attack_order(under.attack) > attack_order(over.attack)


def _sizes(first: Measurement, second: Measurement) -> str:
    sizes = dict.fromkeys((first.n, second.n))
    return " and ".join(f"n{NBSP}={NBSP}{count(n)}" for n in sizes)


def _differing(first: Measurement, second: Measurement) -> str:
    names = ("data set", "resolution", "norm", "radius", "attack")
    pairs = zip(names, first.under, second.under, strict=True)
    return "; ".join(f"{name} {one} against {other}" for name, one, other in pairs if one != other)


def figure_words(measured: Measurement) -> str:
    """A figure with its interval: "68.0 % [58.3–76.3]"."""
    return f"{percent(measured.robust)} [{interval(measured.low, measured.high)}]"
