"""Whether a model becomes champion: a pure function of two figures and the rules.

A difference that the images cannot carry is no reason: the low end of the interval is what has to reach the minimum,
and a champion measured under other conditions is never compared, only named.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from components.promote.config import PromoteConfig
from components.promote.judged import Judged
from components.statistics import PairedDifference, paired_difference


@dataclass(frozen=True)
class Decision:
    """The gate's answer.

    Attributes:
        promote: every rule held.
        passed, failed: one sentence a rule; promote is true exactly where `failed` is empty.
        difference: to the champion, image by image, where both have verdicts.
    """

    promote: bool
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    difference: PairedDifference | None = None

    @property
    def reasons(self) -> list[str]:
        """All sentences, those that failed first."""
        return [*self.failed, *self.passed]


def decide(
    challenger: Judged, champion: Judged | None, rules: PromoteConfig, *, has_champion: bool = False
) -> Decision:
    """Judges a challenger.

    Args:
        champion: the champion's figure; None where there is no champion or it left no figure.
        has_champion: there is a champion, so that a missing figure is a reason against.
    """
    verdicts = _absolute(challenger, rules)
    difference = None
    if champion is not None:
        differing = [name for name, value in challenger.conditions.items() if champion.conditions[name] != value]
        if differing:
            verdicts.append(
                (False, f"the champion was measured under other conditions: {_listed(differing, champion, challenger)}")
            )
        else:
            if challenger.robust and champion.robust:
                difference = paired_difference(
                    challenger.robust, champion.robust, challenger.interval, champion.interval
                )
            verdicts += _against(challenger, champion, rules, difference)
    elif has_champion:
        verdicts.append((False, "the champion left no figure to compare with; evaluate it under the same conditions"))
    else:
        verdicts.append((True, "there is no champion yet"))
    passed = [sentence for holds, sentence in verdicts if holds]
    failed = [sentence for holds, sentence in verdicts if not holds]
    return Decision(not failed, passed, failed, difference)


def _absolute(figure: Judged, rules: PromoteConfig) -> list[tuple[bool, str]]:
    low = figure.interval[0]
    return [
        (
            rules.attack in ("any", figure.attack),
            f"{figure.norm} {figure.eps:g} was measured by {figure.attack}; {rules.attack} is asked for",
        ),
        (
            low >= rules.min_robust,
            f"robust accuracy {_percent(figure.robust_accuracy)} on {figure.n} images, certain to 95 % from "
            f"{_percent(low)} on; at least {_percent(rules.min_robust)} is asked for",
        ),
        (
            figure.clean_accuracy >= rules.min_clean,
            f"clean accuracy {_percent(figure.clean_accuracy)}; at least {_percent(rules.min_clean)} is asked for",
        ),
    ]


def _against(
    challenger: Judged, champion: Judged, rules: PromoteConfig, difference: PairedDifference | None
) -> list[tuple[bool, str]]:
    gain = challenger.robust_accuracy - champion.robust_accuracy
    drop = champion.clean_accuracy - challenger.clean_accuracy
    # Shares of n images are compared as counts: 0.58 - 0.56 is a little more than 0.02 in floating point.
    gained, asked = round(gain * challenger.n), rules.margin * challenger.n
    found = [
        (
            gained > 0 and gained >= asked - 1e-6,
            f"robust accuracy {_points(gain)} against the champion's {_percent(champion.robust_accuracy)}; more than 0 "
            f"and at least {_points(rules.margin)} is asked for",
        ),
        (
            round(drop * challenger.n) <= rules.max_clean_drop * challenger.n + 1e-6,
            f"clean accuracy {_points(-drop)} against the champion's {_percent(champion.clean_accuracy)}; at most "
            f"{_points(-rules.max_clean_drop)} is allowed",
        ),
    ]
    if rules.significant:
        known = difference is not None
        low, high = difference.interval if difference else (float("nan"), float("nan"))
        words = f"lies between {_points(low)} and {_points(high)}" if known else "is not known image by image"
        found.append((known and low > 0, f"the paired difference {words} (95 %); above 0 is asked for"))
    return found


def _listed(names: list[str], champion: Judged, challenger: Judged) -> str:
    pairs = (f"{name} {champion.conditions[name]} there, {challenger.conditions[name]} here" for name in names)
    return "; ".join(pairs)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
