"""The sentence at the top and the key figures, computed from the rows and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.report.compare import Comparison, compare, figure_words
from components.report.data import CLEAN_KINDS, ROBUST_KINDS
from components.report.figures import NBSP, count, percent
from components.report.measurement import Measurement, attack_order


@dataclass(frozen=True)
class Headline:
    """The figures the page leads with: the most robust model, the clean model beside it, and how they compare."""

    robust: Measurement | None = None
    clean: Measurement | None = None
    rivals: int = 0
    comparison: Comparison | None = None


def find_headline(rows: Sequence[Measurement]) -> Headline:
    """The threat measured with the strongest attack on the most models; in it the most robust model, against the
    first cleanly trained one under the same conditions."""
    figures = [row for row in rows if row.robust is not None]
    robust = [row for row in figures if row.kind in ROBUST_KINDS]
    if not robust:
        return Headline(clean=_strongest(figures))
    lead = max(robust, key=lambda row: _weight(row, figures))
    rivals = [row for row in robust if row.under == lead.under]
    best = max(rivals, key=lambda row: row.robust or 0.0)
    clean = _clean_beside(best, figures)
    return Headline(best, clean, len({row.name for row in rivals}), compare(best, clean) if clean else None)


def _clean_beside(best: Measurement, figures: Sequence[Measurement]) -> Measurement | None:
    """A cleanly trained model's figure for the same threat, by the same attack or the strongest there is."""
    alike = [row for row in figures if row.kind in CLEAN_KINDS and row.under[:-1] == best.under[:-1]]
    return min(alike, key=lambda row: (row.attack != best.attack, attack_order(row.attack)), default=None)


def sentences(headline: Headline) -> list[str]:
    """The headline in words, each sentence from the figures; one that says so when there are none."""
    best, clean = headline.robust, headline.clean
    if best is None:
        return [_only(clean) if clean else "No robust accuracy was measured in this run."]
    chosen = f", the highest of {headline.rivals} adversarially trained models measured" if headline.rivals > 1 else ""
    said = [
        f"Under {best.threat} ({best.attack}, n{NBSP}={NBSP}{count(best.n)}) the model of stage “{best.name}” "
        f"({best.model_title}) keeps {figure_words(best)} of {best.dataset} right{chosen}; "
        f"without an attack {percent(best.clean)}."
    ]
    if clean is not None and headline.comparison is not None:
        same = clean.under == best.under
        attack = "under the same conditions" if same else f"under {clean.attack} at the same radius"
        said.append(
            f"The cleanly trained model “{clean.name}” ({clean.model_title}) keeps {figure_words(clean)} {attack}, "
            f"and {percent(clean.clean)} without an attack. “{best.name}” against “{clean.name}”: "
            f"{headline.comparison.words}."
        )
    else:
        said.append("No cleanly trained model was measured at this radius.")
    return said


def _only(row: Measurement) -> str:
    return (
        f"No adversarially trained model was measured. Under {row.threat} ({row.attack}, n{NBSP}={NBSP}{count(row.n)}) "
        f"the model of stage “{row.name}” keeps {figure_words(row)} right."
    )


def _weight(row: Measurement, figures: Sequence[Measurement]) -> tuple[int, int, int, int]:
    alike = [other for other in figures if other.under == row.under]
    has_clean = _clean_beside(row, figures) is not None
    return -attack_order(row.attack), int(has_clean), len({other.name for other in alike}), row.n or 0


def _strongest(figures: Sequence[Measurement]) -> Measurement | None:
    return min(figures, key=lambda row: attack_order(row.attack), default=None)
