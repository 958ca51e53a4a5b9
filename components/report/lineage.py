"""In what two trainings are equal and in what they differ, out of their configurations and those they started from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.report.data import ReportStage
from components.report.figures import listed

_OF_THE_STEM = frozenset({"init", "model.name", "model.stem", "model.kwargs.stem"})
"""Fields that differ between two stems by the nature of the question."""


def differences(first: str, second: str, stages: Sequence[ReportStage]) -> list[str]:
    """Sentences on two training stages: what differs in their configurations, and in what they started from.

    Args:
        first: name of one training stage, `second` of the other.
        stages: those of the run.
    """
    known = {stage.name: stage for stage in stages}
    ours, theirs = (chain(name, known) for name in (first, second))
    if not ours or not theirs:
        return [f"The configuration of “{first if not ours else second}” is not known here."]
    said = [_fields(ours[0], theirs[0])]
    before = [_only_in(ours, theirs), _only_in(theirs, ours)]
    for own, stage in zip(before, (ours[0], theirs[0]), strict=True):
        if own:
            trained = listed([f"“{one.name}” ({one.kind}{_epochs(one)})" for one in own])
            said.append(f"Only behind “{stage.name}”: {trained}.")
    for one, other in _alike(before):
        said.append(_fields(one, other))
    return said + _clean_epochs(ours, theirs)


def chain(name: str, known: Mapping[str, ReportStage]) -> list[ReportStage]:
    """A training stage and those whose weights it started from, itself first."""
    found: list[ReportStage] = []
    while name in known and known[name] not in found:
        found.append(known[name])
        name = str(known[name].config.get("init") or "")
    return found


def _only_in(one: Sequence[ReportStage], other: Sequence[ReportStage]) -> list[ReportStage]:
    names = {stage.name for stage in other}
    return [stage for stage in one[1:] if stage.name not in names]


def _alike(before: Sequence[Sequence[ReportStage]]) -> Iterator[tuple[ReportStage, ReportStage]]:
    """Stages of one kind that stand behind both trainings under different names."""
    for one in before[0]:
        yield from ((one, other) for other in before[1] if other.kind == one.kind)


def _fields(one: ReportStage, other: ReportStage) -> str:
    ours, theirs = (dict(_flat(stage.config)) for stage in (one, other))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if key not in _OF_THE_STEM]
    apart = [key for key in keys if ours.get(key) != theirs.get(key)]
    start = f"“{one.name}” starts from {_start(one)}, “{other.name}” from {_start(other)}"
    if not apart:
        return f"“{one.name}” and “{other.name}” are equal in every other field of their configuration; {start}."
    named = listed([f"{key} ({_word(ours.get(key))} against {_word(theirs.get(key))})" for key in apart])
    return f"“{one.name}” and “{other.name}” differ in {named}; {start}."


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _clean_epochs(ours: Sequence[ReportStage], theirs: Sequence[ReportStage]) -> list[str]:
    """How long each was trained without an attack, where that differs."""
    sums = [sum(_number(stage) for stage in one if not stage.config.get("attack")) for one in (ours, theirs)]
    if sums[0] == sums[1]:
        return []
    return [
        f"Trained without an attack for {sums[0]} epochs in all behind “{ours[0].name}” and {sums[1]} behind "
        f"“{theirs[0].name}”: a difference between them may come from that too."
    ]


def _epochs(stage: ReportStage) -> str:
    return f", {_number(stage)} epochs" if _number(stage) else ""


def _number(stage: ReportStage) -> int:
    epochs = stage.config.get("epochs")
    return epochs if isinstance(epochs, int) else 0


def _start(stage: ReportStage) -> str:
    return f"“{stage.config.get('init') or 'its own default'}”"


def _word(value: object) -> str:
    return "none" if value is None else str(value)
