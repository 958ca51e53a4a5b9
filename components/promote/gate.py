"""The gate: whether a model becomes champion, as a pure function of two results and the rules.

A difference that the images cannot show is no reason: the low end of the interval is what has to reach the minimum,
and a champion measured under other conditions is never compared; the differing conditions are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from components.errors import UserError
from components.promote.config import ANY, PromoteConfig
from components.result_rows import EvaluationResults, Interval, ResultRow, Verdicts
from components.statistics import PairedDifference, paired_difference
from components.threats import STANDARD, attack_order, is_upper_bound, radius_text, same_radius, threat_text
from components.wording import paired_evidence, percent, points


class JudgedResult(BaseModel):
    """One robust accuracy with everything that has to be equal before two of them may be compared.

    Attributes:
        seed, batch_size: of the attack.
        interval: (low, high), 95 %, of the robust accuracy.
        robust: for each image whether it is robust; empty if the evaluation left no verdicts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    norm: str
    eps: float
    attack: str
    library: str
    resolution: int
    n: int
    images_digest: str
    precision: str
    seed: int
    batch_size: int
    clean_accuracy: float
    robust_accuracy: float
    interval: Interval
    robust: tuple[bool, ...] = ()

    @classmethod
    def from_row(cls, row: ResultRow, verdicts: Verdicts) -> Self:
        """The result of one row, with its verdicts."""
        images, details = verdicts.robust(row), row.details
        return cls(
            norm=row.norm,
            eps=row.eps,
            attack=row.attack,
            library=details.attack_library,
            resolution=row.resolution,
            n=row.n,
            images_digest=details.images_digest,
            precision=details.precision,
            seed=details.seed,
            batch_size=details.batch_size,
            clean_accuracy=row.clean_accuracy,
            robust_accuracy=row.robust_accuracy,
            interval=row.interval,
            robust=tuple(images.robust) if images else (),
        )

    @property
    def conditions(self) -> dict[str, Any]:
        """What has to be equal for a comparison."""
        return self.model_dump(exclude={"clean_accuracy", "robust_accuracy", "interval", "robust"})


def judged_result(results: EvaluationResults, verdicts: Verdicts, config: PromoteConfig) -> JudgedResult:
    """The result that the configuration names.

    Raises:
        UserError: the evaluation has no such result.
    """
    fitting = [row for row in results.rows if _fits(row, config)]
    if not fitting:
        known = ", ".join(f"{threat_text(row.norm, row.eps)} by {row.attack}" for row in results.rows)
        raise UserError(
            f"the evaluation {config.evaluation!r} has no result to judge",
            where="promote",
            value={"norm": config.norm, "eps": config.eps},
            remedy=f"name one it has ({known}), or add the threat to the evaluation",
        )
    first = next((row for row in fitting if row.attack == STANDARD.title), fitting[0])
    # The strongest attack that measured this threat; a weaker one gives an upper bound.
    same = [row for row in fitting if _same_threat(row, first)]
    return JudgedResult.from_row(min(same, key=lambda row: attack_order(row.attack)), verdicts)


def result_to_compare(results: EvaluationResults, verdicts: Verdicts, challenger: JudgedResult) -> JudgedResult:
    """The champion's result under the challenger's conditions; if it has none, the nearest, for the gate to refuse."""

    def distance(row: ResultRow) -> tuple[bool, ...]:
        eps = same_radius(row.eps, challenger.eps)
        attack, resolution = row.attack == challenger.attack, row.resolution == challenger.resolution
        return row.norm != challenger.norm, not eps, not attack, not resolution

    return JudgedResult.from_row(min(results.rows, key=distance), verdicts)


def _fits(row: ResultRow, config: PromoteConfig) -> bool:
    same_norm = config.norm is None or row.norm == config.norm
    return same_norm and (config.eps is None or same_radius(row.eps, config.eps))


def _same_threat(row: ResultRow, other: ResultRow) -> bool:
    return (row.norm, row.resolution) == (other.norm, other.resolution) and same_radius(row.eps, other.eps)


@dataclass(frozen=True)
class Decision:
    """The decision of the gate.

    Attributes:
        promote: every rule held.
        passed, failed: one sentence per rule; promote is true exactly if `failed` is empty.
        difference: to the champion, image by image, if both have verdicts.
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
    challenger: JudgedResult, champion: JudgedResult | None, rules: PromoteConfig, *, has_champion: bool = False
) -> Decision:
    """Judges a challenger.

    Args:
        champion: the champion's result; None if there is no champion or it left no result.
        has_champion: whether there is a champion; without its result the challenger is refused.
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
            verdicts += _relative(challenger, champion, rules, difference)
    elif has_champion:
        verdicts.append((False, "the champion left no result to compare with; evaluate it under the same conditions"))
    else:
        verdicts.append((True, "there is no champion yet"))
    passed = [sentence for holds, sentence in verdicts if holds]
    failed = [sentence for holds, sentence in verdicts if not holds]
    return Decision(not failed, passed, failed, difference)


def _absolute(result: JudgedResult, rules: PromoteConfig) -> list[tuple[bool, str]]:
    low = result.interval[0]
    return [
        (
            rules.attack in (ANY, result.attack) or is_upper_bound(rules.attack, of=result.attack),
            f"{threat_text(result.norm, result.eps)} was measured by {result.attack}; {rules.attack} is asked for",
        ),
        (
            low >= rules.min_robust,
            f"robust accuracy {percent(result.robust_accuracy)} on {result.n} images, 95 % interval from "
            f"{percent(low)}; at least {percent(rules.min_robust)} is asked for",
        ),
        (
            result.clean_accuracy >= rules.min_clean,
            f"clean accuracy {percent(result.clean_accuracy)}; at least {percent(rules.min_clean)} is asked for",
        ),
    ]


def _relative(
    challenger: JudgedResult, champion: JudgedResult, rules: PromoteConfig, difference: PairedDifference | None
) -> list[tuple[bool, str]]:
    gain = challenger.robust_accuracy - champion.robust_accuracy
    drop = champion.clean_accuracy - challenger.clean_accuracy
    # Shares of n images are compared as counts: 0.58 - 0.56 is a little more than 0.02 in floating point.
    gained, asked = round(gain * challenger.n), rules.min_robust_gain * challenger.n
    found = [
        (
            gained > 0 and gained >= asked - 1e-6,
            f"robust accuracy {points(gain)} points against the champion's {percent(champion.robust_accuracy)}; more "
            f"than 0 and at least {points(rules.min_robust_gain)} points is asked for",
        ),
        (
            round(drop * challenger.n) <= rules.max_clean_drop * challenger.n + 1e-6,
            f"clean accuracy {points(-drop)} points against the champion's {percent(champion.clean_accuracy)}; at most "
            f"{points(-rules.max_clean_drop)} points is allowed",
        ),
    ]
    if rules.significant:
        words = paired_evidence(difference) if difference else "not known image by image"
        above_zero = difference is not None and difference.interval[0] > 0
        found.append((above_zero, f"paired difference to the champion: {words}; an interval above 0 is asked for"))
    return found


def _listed(names: list[str], champion: JudgedResult, challenger: JudgedResult) -> str:
    pairs = ((name, champion.conditions[name], challenger.conditions[name]) for name in names)
    return "; ".join(
        f"{name} {_text(name, old)} for the champion, {_text(name, new)} for the challenger" for name, old, new in pairs
    )


def _text(name: str, value: Any) -> str:
    return radius_text(value) if name == "eps" else str(value)
