"""What fine-tuning to a larger radius, or to another norm, gained there and cost elsewhere, on the same images."""

from __future__ import annotations

from collections.abc import Sequence

from components.report.compare import compare
from components.report.data import ReportStage
from components.report.measurement import Measurement, attack_order, norm_order


def gains(stages: Sequence[ReportStage], rows: Sequence[Measurement]) -> list[str]:
    """For each `radius` stage a sentence a threat that both it and the model it started from were measured under.

    The threat it was trained for comes first; where that comparison is not possible, the sentence says so.
    """
    said: list[str] = []
    for stage in stages:
        base = stage.config.get("init")
        if stage.kind == "radius" and isinstance(base, str):
            said += _of(stage, base, rows)
    return said


def _of(stage: ReportStage, base: str, rows: Sequence[Measurement]) -> list[str]:
    attack = stage.config.get("attack") or {}
    aimed = attack.get("norm"), attack.get("eps")
    pairs = _pairs([row for row in rows if row.name == stage.name], [row for row in rows if row.name == base])
    pairs.sort(key=lambda pair: (not _is(pair[0], aimed), norm_order(pair[0].norm), pair[0].eps or 0.0))
    said = []
    if not any(_is(one, aimed) for one, _ in pairs):
        said.append(f"“{stage.name}” and “{base}”, from which it starts, were not both measured at its own radius.")
    for one, other in pairs:
        what = "the radius it was trained for" if _is(one, aimed) else "not the radius it was trained for"
        said.append(f"“{one.name}” against “{other.name}” under {one.threat} ({what}): {compare(one, other).words}.")
    return said


def _pairs(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> list[tuple[Measurement, Measurement]]:
    """Figures under equal conditions, the strongest attack that both share for each threat."""
    known = {row.under: row for row in theirs if row.robust is not None}
    found: dict[tuple[object, ...], tuple[Measurement, Measurement]] = {}
    for row in sorted(ours, key=lambda row: -attack_order(row.attack)):
        if row.under in known and row.robust is not None:
            found[row.under[:-1]] = (row, known[row.under])
    return list(found.values())


def _is(row: Measurement, aimed: tuple[object, object]) -> bool:
    norm, eps = aimed
    return row.norm == norm and isinstance(eps, int | float) and abs((row.eps or 0.0) - eps) < 1e-9
