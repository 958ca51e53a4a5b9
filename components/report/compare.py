"""What two robust accuracies show about each other, and what they cannot show.

Two models measured on the same images are compared image by image. A difference is called shown if the 95 % interval of
the paired difference does not contain 0 and the exact test of the images on which the models disagree is significant
too. Figures without common images are compared by their own intervals. That is stricter: intervals that do not overlap
mean a difference; intervals that overlap may still belong to different accuracies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.report.data import Measurement, ReportStage, differing_conditions, same_images
from components.result_rows import ResolutionVerdicts, VerdictThreat
from components.statistics import PairedDifference, images_needed, paired_difference, smallest_difference
from components.threats import ATTACKS, is_upper_bound, same_radius, threat_text
from components.wording import NBSP, count, interval, paired_difference_text, percent, points, sample_size

Relation = Literal["higher", "lower", "not shown", "not comparable"]


@dataclass(frozen=True)
class Comparison:
    """How the robust accuracy of `first` relates to that of `second`.

    Attributes:
        relation: of the first to the second.
        words: the same as a phrase, with the evidence.
        paired: the difference on the common images; None if there are none.
    """

    first: Measurement
    second: Measurement
    relation: Relation
    words: str
    paired: PairedDifference | None = None

    @property
    def shows(self) -> bool:
        """Whether a difference is shown."""
        return self.relation in ("higher", "lower")

    @property
    def difference(self) -> float:
        """First minus second, as a fraction; on the common images if there are any."""
        if self.paired is not None:
            return self.paired.difference
        return self.first.row.robust_accuracy - self.second.row.robust_accuracy

    @property
    def sizes(self) -> str:
        """The numbers of images: "100", or "100 / 40" if they differ."""
        return " / ".join(dict.fromkeys(count(one.row.n) for one in (self.first, self.second)))


def compare(first: Measurement, second: Measurement) -> Comparison:
    """Compares two measurements. Those under different conditions are not compared, and the condition is named.

    One difference is allowed: the lower figure comes from a shorter attack. The longer attack contains the shorter one
    and could only lower that figure further, so the order of the two is certain.
    """
    differing = _differing_settings(first, second)
    if differing and first.setting[:-1] != second.setting[:-1]:
        return _not_comparable(first, second, differing)
    if first.images and second.images and (conditions := differing_conditions(first.source, second.source)):
        return _not_comparable(first, second, f"they differ in {conditions}")
    found = _on_the_same_images(first, second) or _by_intervals(first, second)
    if differing and not _holds_for_a_longer_attack(found):
        return _not_comparable(first, second, differing)
    return found


def _not_comparable(first: Measurement, second: Measurement, why: str) -> Comparison:
    return Comparison(first, second, "not comparable", f"not comparable: {why}")


def overlaps(first: Measurement, second: Measurement) -> bool:
    """Whether the intervals of two measurements share a point."""
    return max(first.low, second.low) <= min(first.high, second.high)


def _on_the_same_images(first: Measurement, second: Measurement) -> Comparison | None:
    """The paired comparison on the first images that both have; None if they have no images in common."""
    ours, theirs = first.images, second.images
    if ours is None or theirs is None or not same_images(first.source, second.source):
        return None
    n = min(len(ours.images), len(theirs.images))
    if not n or list(ours.images[:n]) != list(theirs.images[:n]):
        return None
    found = paired_difference(ours.robust[:n], theirs.robust[:n])
    relation: Relation = ("higher" if found.difference > 0 else "lower") if found.shows else "not shown"
    return Comparison(first, second, relation, paired_difference_text(found), found)


def _by_intervals(first: Measurement, second: Measurement) -> Comparison:
    difference = first.row.robust_accuracy - second.row.robust_accuracy
    gap = points(difference)
    if overlaps(first, second):
        sizes = " and ".join(dict.fromkeys(sample_size(one.row.n) for one in (first, second)))
        words = f"no difference shown by the two intervals alone at {sizes} ({gap}{NBSP}points)"
        return Comparison(first, second, "not shown", f"{words}; there are no common images to compare")
    relation: Relation = "higher" if difference > 0 else "lower"
    words = f"{relation} by {gap.lstrip('+−')} points; the intervals do not overlap"
    return Comparison(first, second, relation, words)


def _holds_for_a_longer_attack(found: Comparison) -> bool:
    if not found.shows:
        return False
    over, under = (found.first, found.second) if found.relation == "higher" else (found.second, found.first)
    return is_upper_bound(under.row.attack, of=over.row.attack)


def _differing_settings(first: Measurement, second: Measurement) -> str:
    names = ("data set", "resolution", "norm", "radius", "attack")
    pairs = zip(names, first.setting, second.setting, strict=True)
    return "; ".join(f"{name} {one} against {other}" for name, one, other in pairs if one != other)


def figure_text(measured: Measurement) -> str:
    """A robust accuracy with its interval: "68.0 % [58.3–76.3]"."""
    return f"{percent(measured.row.robust_accuracy)} [{interval(measured.low, measured.high)}]"


@dataclass(frozen=True)
class PairedResult:
    """Two models on the same images, under one threat or without an attack.

    Attributes:
        first, second: names of the models' training stages.
        what: the threat with its attack, or "clean".
        shares: fractions of the n images that each model classifies correctly.
        difference: first minus second, on the same images.
        smallest: the smallest difference that these images could have shown (see `smallest_difference`).
        needed: number of images that a difference as large as this one would need; None if that is not known.
        note: a reservation, such as two resolutions.
    """

    first: str
    second: str
    what: str
    shares: tuple[float, float]
    difference: PairedDifference
    smallest: float | None
    needed: int | None
    note: str = ""

    @property
    def shown(self) -> str:
        """What these images show, in words."""
        return paired_difference_text(self.difference)

    @property
    def not_shown(self) -> str:
        """What these images cannot show, in words."""
        disagreeing = self.difference.only_first + self.difference.only_second
        words = f"{sample_size(self.difference.n)}, models disagree on {disagreeing}: "
        if self.smallest is None:
            return f"{words}no difference could be shown"
        words += f"a difference below {points(self.smallest).lstrip('+')} points could not be shown"
        if self.difference.shows or self.needed is None:
            return words
        return f"{words}; this difference would need about {sample_size(self.needed)}"

    def plain(self) -> dict[str, Any]:
        """For JSON; differences and interval bounds are fractions."""
        return {
            "first": self.first,
            "second": self.second,
            "what": self.what,
            "shares": list(self.shares),
            **{key: value for key, value in vars(self.difference).items() if key != "interval"},
            "interval": list(self.difference.interval),
            "shows": self.difference.shows,
            "smallest": self.smallest,
            "needed": self.needed,
            "shown": self.shown,
            "not_shown": self.not_shown,
            "note": self.note,
        }


@dataclass(frozen=True)
class NotComparable:
    """Two models that cannot be compared, and why."""

    first: str
    second: str
    why: str


def compare_stages(first: ReportStage, second: ReportStage) -> list[PairedResult] | NotComparable:
    """Compares two evaluations on their clean images, then under each threat that both measured by the same attack."""
    names = first.measured_model, second.measured_model
    differing = differing_conditions(first, second) or ("" if same_images(first, second) else "the images")
    if differing:
        return NotComparable(*names, f"not comparable: they differ in {differing}")
    found = [result for pair in _same_resolution(first, second) for result in _results(names, *pair)]
    return found or NotComparable(*names, "not comparable: no threat was measured in both by the same attack")


def _same_resolution(first: ReportStage, second: ReportStage) -> list[tuple[ResolutionVerdicts, ResolutionVerdicts]]:
    """Verdicts at the same resolution; if both evaluations have one resolution each, those."""
    ours, theirs = (list(stage.verdicts.resolutions) if stage.verdicts else [] for stage in (first, second))
    same = [(one, other) for one in ours for other in theirs if one.resolution == other.resolution]
    if not same and len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    return same


def _results(names: tuple[str, str], one: ResolutionVerdicts, other: ResolutionVerdicts) -> Iterator[PairedResult]:
    differ = one.resolution != other.resolution
    note = f"at {one.resolution} px against {other.resolution} px" if differ else ""
    yield _paired_result(names, "clean", one.clean, other.clean, note)
    for threat in one.threats:
        # An attack that is not in the registry any more has no parts to read its verdicts by.
        if threat.attack in ATTACKS and any(_same_threat(threat, measured) for measured in other.threats):
            title = ATTACKS[threat.attack].title
            ours, theirs = (side.robust(threat.norm, threat.eps, title) for side in (one, other))
            assert ours is not None
            assert theirs is not None
            what = f"{threat_text(threat.norm, threat.eps)}, {title}"
            yield _paired_result(names, what, ours.robust, theirs.robust, note)


def _same_threat(one: VerdictThreat, other: VerdictThreat) -> bool:
    return (one.norm, one.attack) == (other.norm, other.attack) and same_radius(one.eps, other.eps)


def _paired_result(
    names: tuple[str, str], what: str, first: Sequence[bool], second: Sequence[bool], note: str
) -> PairedResult:
    # A threat with an n of its own took the first of the images, so the images common to both are the first ones.
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    found = paired_difference(first, second)
    disagreeing, right = found.only_first + found.only_second, sum(second)
    both = right - found.only_second
    return PairedResult(
        *names,
        what=what,
        shares=(sum(first) / n, right / n),
        difference=found,
        smallest=smallest_difference(n, right, disagreeing),
        needed=images_needed(both, found.only_first, found.only_second, n - right - found.only_first),
        note=note,
    )
