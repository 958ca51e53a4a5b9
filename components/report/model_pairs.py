"""Which models of a run the page compares, and in what their trainings differ.

- ConvStem against PatchStem: models that are alike except for the stem.
- A model fine-tuned to another norm or radius, against the model that it started from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.report.compare import Comparison, compare
from components.report.data import Measurement, ReportStage, grouped, is_fine_tuned_to_another_threat, is_threat
from components.result_rows import STEM_TITLES
from components.threats import attack_order, norm_order
from components.wording import listed

_STEM_FIELDS = frozenset({"init", "model.name", "model.stem", "model.kwargs.stem"})
"""Configuration fields in which two models with different stems differ by definition."""


def stem_pairs(rows: Sequence[Measurement]) -> list[list[Comparison]]:
    """Compares ConvStem with PatchStem, threat by threat, for each two models that are alike except for the stem.

    Alike: the same kind of training stage, network and data. If a threat was measured several times at one resolution,
    the strongest attack that both models share is taken. `first` of each comparison is the ConvStem.
    """
    found = []
    for alike in grouped(rows, lambda one: (one.row.kind, base_name(one.row.model), one.row.dataset)).values():
        patch, conv = (
            grouped((one for one in alike if one.row.stem == stem), lambda one: one.stage) for stem in STEM_TITLES
        )
        found += [_compared(one, other) for one in conv.values() for other in patch.values()]
    return [pairs for pairs in found if pairs]


def base_name(model: str) -> str:
    """The network's name without the mark of its stem: "convnext_tiny_cvst" is a "convnext_tiny"."""
    return model.removesuffix("_cvst")


def _compared(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> list[Comparison]:
    pairs = _same_threats(ours, theirs)
    pairs.sort(key=lambda pair: (norm_order(pair[0].row.norm), pair[0].row.eps))
    return [compare(one, other) for one, other in pairs]


def _same_threats(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> list[tuple[Measurement, Measurement]]:
    """Measurements under equal conditions, by the strongest attack that both sides share for each threat."""
    known = {one.setting: one for one in theirs}
    found: dict[tuple[object, ...], tuple[Measurement, Measurement]] = {}
    for one in sorted(ours, key=lambda one: -attack_order(one.row.attack)):
        if one.setting in known:
            found[one.setting[:-1]] = (one, known[one.setting])
    return list(found.values())


def radius_gains(stages: Sequence[ReportStage], rows: Sequence[Measurement]) -> list[str]:
    """What fine-tuning to another norm or radius gained there and cost elsewhere, on the same images.

    Returns:
        For each such stage one sentence for each threat under which it and the model it started from were measured. The
        threat it was trained for comes first; if that comparison is not possible, a sentence says so.
    """
    known = {stage.name: stage for stage in stages}
    sentences: list[str] = []
    for stage in stages:
        base = known.get(stage.starts_from)
        if base is not None and is_fine_tuned_to_another_threat(stage, base):
            sentences += _gains_of(stage, base.name, rows)
    return sentences


def _gains_of(stage: ReportStage, base: str, rows: Sequence[Measurement]) -> list[str]:
    def is_own(one: Measurement) -> bool:
        return is_threat(stage.trained_threat, one.row.norm, one.row.eps)

    pairs = _same_threats([one for one in rows if one.stage == stage.name], [one for one in rows if one.stage == base])
    pairs.sort(key=lambda pair: (not is_own(pair[0]), norm_order(pair[0].row.norm), pair[0].row.eps))
    sentences = []
    if not any(is_own(one) for one, _ in pairs):
        sentences.append(
            f"“{stage.name}” and “{base}”, from which it starts, were not both measured at the radius that "
            f"“{stage.name}” was trained for."
        )
    for one, other in pairs:
        what = "the radius it was trained for" if is_own(one) else "not the radius it was trained for"
        sentences.append(
            f"“{one.stage}” against “{other.stage}” under {one.row.threat} ({what}): {compare(one, other).words}."
        )
    return sentences


def config_differences(first: str, second: str, stages: Sequence[ReportStage]) -> list[str]:
    """Sentences on two training stages: differences of their configurations, and of the stages they started from.

    Args:
        first: name of one training stage.
        second: name of the other.
        stages: those of the run.
    """
    known = {stage.name: stage for stage in stages}
    ours, theirs = (chain(name, known) for name in (first, second))
    if not ours or not theirs:
        return [f"The configuration of “{first if not ours else second}” is not a part of this run."]
    sentences = [_fields(ours[0], theirs[0])]
    before = [_only_in(ours, theirs), _only_in(theirs, ours)]
    for own, stage in zip(before, (ours[0], theirs[0]), strict=True):
        if own:
            trained = listed([f"“{one.name}” ({one.kind}{_epochs_text(one)})" for one in own])
            sentences.append(f"Only in the history of “{stage.name}”: {trained}.")
    for one, other in _same_kind(before):
        sentences.append(_fields(one, other))
    return sentences + _clean_epochs(ours, theirs)


def chain(name: str, known: Mapping[str, ReportStage]) -> list[ReportStage]:
    """A training stage and those whose weights it started from, itself first."""
    found: list[ReportStage] = []
    while name in known and known[name] not in found:
        found.append(known[name])
        name = known[name].starts_from
    return found


def _only_in(one: Sequence[ReportStage], other: Sequence[ReportStage]) -> list[ReportStage]:
    names = {stage.name for stage in other}
    return [stage for stage in one[1:] if stage.name not in names]


def _same_kind(before: Sequence[Sequence[ReportStage]]) -> Iterator[tuple[ReportStage, ReportStage]]:
    """Stages of one kind that both trainings started from, under different names."""
    for one in before[0]:
        yield from ((one, other) for other in before[1] if other.kind == one.kind)


def _fields(one: ReportStage, other: ReportStage) -> str:
    ours, theirs = (dict(_flat(stage.config)) for stage in (one, other))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if key not in _STEM_FIELDS]
    apart = [key for key in keys if ours.get(key) != theirs.get(key)]
    start = f"“{one.name}” starts from {_start(one)}, “{other.name}” from {_start(other)}"
    if not apart:
        return f"“{one.name}” and “{other.name}” are equal in every other field of their configuration; {start}."
    named = listed([f"{key} ({_text(ours.get(key))} against {_text(theirs.get(key))})" for key in apart])
    return f"“{one.name}” and “{other.name}” differ in {named}; {start}."


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _clean_epochs(ours: Sequence[ReportStage], theirs: Sequence[ReportStage]) -> list[str]:
    """How many epochs each was trained without an attack, if these numbers differ."""
    sums = [sum(_epochs(stage) for stage in one if not stage.config.get("attack")) for one in (ours, theirs)]
    if sums[0] == sums[1]:
        return []
    return [
        f"Epochs of training without an attack: {sums[0]} in total for “{ours[0].name}”, {sums[1]} for "
        f"“{theirs[0].name}”. A difference between them may also come from that."
    ]


def _epochs_text(stage: ReportStage) -> str:
    return f", {_epochs(stage)} epochs" if _epochs(stage) else ""


def _epochs(stage: ReportStage) -> int:
    epochs = stage.config.get("epochs")
    return epochs if isinstance(epochs, int) else 0


def _start(stage: ReportStage) -> str:
    return f"“{stage.starts_from or 'its own default'}”"


def _text(value: object) -> str:
    return "none" if value is None else str(value)
