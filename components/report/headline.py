"""The sentences and key figures at the top of the page, computed from the measurements and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.report.compare import Comparison, compare, figure_text
from components.report.data import Measurement
from components.threats import attack_order
from components.wording import percent, sample_size


@dataclass(frozen=True)
class Headline:
    """What the page begins with.

    Attributes:
        robust: the most robust model that was trained under attack; None if there is none.
        clean: a model trained without an attack beside it; without a robust model, the strongest measurement there is.
        rivals: number of models among which `robust` is the most robust one.
        comparison: of `robust` with `clean`.
    """

    robust: Measurement | None = None
    clean: Measurement | None = None
    rivals: int = 0
    comparison: Comparison | None = None


def find_headline(rows: Sequence[Measurement]) -> Headline:
    """Finds the threat that was measured with the strongest attack on most models, and its most robust model.

    It is compared with the first model trained without an attack that was measured under the same conditions.
    """
    robust = [one for one in rows if one.trained_under_attack]
    if not robust:
        return Headline(clean=min(rows, key=lambda one: attack_order(one.row.attack), default=None))
    lead = max(robust, key=lambda one: _weight(one, rows))
    rivals = [one for one in robust if one.setting == lead.setting]
    best = max(rivals, key=lambda one: one.row.robust_accuracy)
    clean = _clean_beside(best, rows)
    return Headline(best, clean, len({one.stage for one in rivals}), compare(best, clean) if clean else None)


def headline_sentences(headline: Headline) -> list[str]:
    """The headline in words; one sentence that says so if there are no figures."""
    best, clean = headline.robust, headline.clean
    if best is None:
        return [_without_robust_model(clean) if clean else "No robust accuracy was measured in this run."]
    chosen = f", the highest of {headline.rivals} adversarially trained models measured" if headline.rivals > 1 else ""
    first = (
        f"Under {best.row.threat} ({best.row.attack}, {sample_size(best.row.n)}) the model of stage “{best.stage}” "
        f"({best.row.model_title}) classifies {figure_text(best)} of {best.row.dataset} correctly{chosen}; "
        f"without an attack {percent(best.row.clean_accuracy)}."
    )
    if clean is None or headline.comparison is None:
        return [first, "No model trained without an attack was measured at this radius."]
    same = clean.setting == best.setting
    attack = "under the same conditions" if same else f"under {clean.row.attack} at the same radius"
    return [
        first,
        f"The model “{clean.stage}” ({clean.row.model_title}), trained without an attack, reaches "
        f"{figure_text(clean)} {attack}, and {percent(clean.row.clean_accuracy)} without an attack. “{best.stage}” "
        f"against “{clean.stage}”: {headline.comparison.words}.",
    ]


def _without_robust_model(one: Measurement) -> str:
    return (
        f"No adversarially trained model was measured. Under {one.row.threat} ({one.row.attack}, "
        f"{sample_size(one.row.n)}) the model of stage “{one.stage}” classifies {figure_text(one)} correctly."
    )


def _clean_beside(best: Measurement, rows: Sequence[Measurement]) -> Measurement | None:
    """A cleanly trained model's measurement of the same threat, by the same attack or the strongest one available."""
    alike = [one for one in rows if one.trained_under_attack is False and one.setting[:-1] == best.setting[:-1]]
    return min(alike, key=lambda one: (one.row.attack != best.row.attack, attack_order(one.row.attack)), default=None)


def _weight(one: Measurement, rows: Sequence[Measurement]) -> tuple[int, int, int, int]:
    alike = {other.stage for other in rows if other.setting == one.setting}
    return -attack_order(one.row.attack), int(_clean_beside(one, rows) is not None), len(alike), one.row.n
