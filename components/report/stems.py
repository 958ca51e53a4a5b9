"""ConvStem against PatchStem: which figures belong together, and what each pair shows."""

from __future__ import annotations

from collections.abc import Sequence

from components.report.charts import Styles, stem_chart
from components.report.compare import Comparison, compare
from components.report.markup import Markup
from components.report.measurement import Measurement, attack_order, grouped, norm_order


def stem_pairs(rows: Sequence[Measurement]) -> list[list[Comparison]]:
    """ConvStem against PatchStem, threat by threat, for each two models alike but for the stem.

    Alike: the same kind of training stage, network and data. Of several figures for one threat and resolution the one
    with the strongest attack that both models share is taken. Each comparison's `first` is the ConvStem.
    """
    known = [row for row in rows if row.robust is not None]
    found = []
    for alike in grouped(known, lambda row: (row.kind, base_name(row.model), row.dataset)).values():
        patch = grouped((row for row in alike if row.stem == "PatchStem"), lambda row: row.name)
        conv = grouped((row for row in alike if row.stem == "ConvStem"), lambda row: row.name)
        found += [_matched(one, other) for one in conv.values() for other in patch.values()]
    return [pairs for pairs in found if pairs]


def stem_charts(pairs: Sequence[Sequence[Comparison]], styles: Styles) -> list[Markup]:
    """A chart for each two models compared by `stem_pairs`."""
    sides = [[(item.second, item.first) for item in some] for some in pairs]
    return [stem_chart(f"stems-{i}", some, styles) for i, some in enumerate(sides)]


def base_name(model: str) -> str:
    """The network's name without the mark of its stem: "convnext_tiny_cvst" is a "convnext_tiny"."""
    return model.removesuffix("_cvst")


def _matched(conv: Sequence[Measurement], patch: Sequence[Measurement]) -> list[Comparison]:
    theirs = {row.under: row for row in patch}
    both = [(row, theirs[row.under]) for row in conv if row.under in theirs]
    best: dict[tuple[object, ...], tuple[Measurement, Measurement]] = {}
    for pair in sorted(both, key=lambda pair: -attack_order(pair[0].attack)):
        best[pair[0].under[:-1]] = pair
    ordered = sorted(best.values(), key=lambda pair: (norm_order(pair[0].norm), pair[0].eps or 0.0))
    return [compare(one, other) for one, other in ordered]
