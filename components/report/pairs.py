"""Two evaluations on the same images, compared image by image: what they show, and what so few images cannot show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.report.data import ReportStage
from components.report.figures import NBSP, count, percent, points, radius
from components.report.verdicts import same_images, unlike
from components.statistics import PairedDifference, images_needed, paired_difference, smallest_difference


@dataclass(frozen=True)
class Finding:
    """One comparison: a threat, or the clean images, for two models.

    Attributes:
        first, second: names of the models' training stages.
        what: the threat with its attack, or "clean".
        shares: of the n images that each model gets right, fractions.
        difference: first less second, on the same images.
        smallest: the smallest difference that these images could have shown (see `smallest_difference`).
        needed: images that a difference as large as this one would need; None where not known.
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
        gap = points(self.difference.difference)
        low, high = (points(bound) for bound in self.difference.interval)
        if self.difference.shows:
            word = "higher" if self.difference.difference > 0 else "lower"
            return f"{word} by {gap.lstrip('+−')} points; the interval {low} to {high} leaves out 0"
        bounds = self.difference.interval
        outside = bounds[0] > 0 or bounds[1] < 0
        why = f"leaves out 0, but the exact test says p = {self.difference.p_value:.2f}" if outside else "holds 0"
        return f"no difference shown ({gap} points; the interval {low} to {high} {why})"

    @property
    def not_shown(self) -> str:
        """What these images cannot show, in words."""
        images = f"n{NBSP}={NBSP}{count(self.difference.n)}"
        disagreeing = self.difference.only_first + self.difference.only_second
        said = f"{images}, models disagree on {disagreeing}: "
        if self.smallest is None:
            return f"{said}no difference could show"
        said += f"less than {points(self.smallest).lstrip('+')} points could not show"
        needs = not self.difference.shows and self.needed is not None
        return f"{said}; one like this needs about n{NBSP}={NBSP}{count(self.needed)}" if needs else said

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
class Refused:
    """A pair that cannot be compared, and why."""

    first: str
    second: str
    why: str


def compare_stages(first: ReportStage, second: ReportStage) -> list[Finding] | Refused:
    """Every threat that both evaluations measured, by the same attack, and the clean images first."""
    names = model_of(first), model_of(second)
    differing = unlike(first, second) or ("" if same_images(first, second) else "the images")
    if differing:
        return Refused(*names, f"not comparable: they differ in {differing}")
    found = [finding for one, other in _groups(first, second) for finding in _findings(names, one, other)]
    return found or Refused(*names, "not comparable: no threat was measured in both by the same attack")


def model_of(stage: ReportStage) -> str:
    """The name of the training stage whose model an evaluation measured."""
    return str(stage.config.get("model") or stage.name)


def _groups(first: ReportStage, second: ReportStage) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Verdicts at the same resolution; of two evaluations with one resolution each, those."""
    ours, theirs = (list(stage.verdicts.get("resolutions") or []) for stage in (first, second))
    same = [(one, other) for one in ours for other in theirs if one["resolution"] == other["resolution"]]
    if not same and len(ours) == len(theirs) == 1:
        same = [(ours[0], theirs[0])]
    yield from same


def _findings(names: tuple[str, str], one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Finding]:
    sides = one["resolution"], other["resolution"]
    note = f"at {sides[0]} px against {sides[1]} px" if sides[0] != sides[1] else ""
    yield _finding(names, "clean", _right(one), _right(other), note)
    for place, threat in enumerate(one["threats"]):
        for there, same in enumerate(other["threats"]):
            if _key(threat) == _key(same):
                what = f"{threat['norm']} {radius(threat['eps'])}, {str(threat['attack']).upper()}"
                what = what.replace("AUTOATTACK", "AutoAttack")
                yield _finding(names, what, _robust(one, place), _robust(other, there), note)


def _key(threat: Mapping[str, Any]) -> tuple[Any, ...]:
    return threat["norm"], round(float(threat["eps"]), 9), threat["attack"]


def _right(group: Mapping[str, Any]) -> list[bool]:
    return [image["clean_prediction"] == image["label"] for image in group["images"]]


def _robust(group: Mapping[str, Any], place: int) -> list[bool]:
    words = [image["verdicts"][place] for image in group["images"]]
    return [word == "robust" for word in words if word is not None]


def _finding(names: tuple[str, str], what: str, first: Sequence[bool], second: Sequence[bool], note: str) -> Finding:
    # A threat with an n of its own took the first of the images, so the images common to both are the first ones.
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    found = paired_difference(first, second)
    disagreeing, right = found.only_first + found.only_second, sum(second)
    both = right - found.only_second
    return Finding(
        *names,
        what=what,
        shares=(sum(first) / n, right / n),
        difference=found,
        smallest=smallest_difference(n, right, disagreeing),
        needed=images_needed(both, found.only_first, found.only_second, n - right - found.only_first),
        note=note,
    )


def percent_pair(finding: Finding) -> tuple[str, str]:
    """The two shares, as percentages."""
    return percent(finding.shares[0]), percent(finding.shares[1])
