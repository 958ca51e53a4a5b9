"""What training itself noticed: the signatures of trainings that go wrong, and what followed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.report.data import ReportStage
from components.report.markup import Content, element

_FOLLOWED = {
    "warn": "The recipe says to warn, so training went on.",
    "back": "Training went back to its last good probe, with {lr_scale:g} of the learning rate.",
}


def troubles(stages: Sequence[ReportStage]) -> list[Content]:
    """One sentence for each signature that a training showed, in the stages' order."""
    return [_sentence(stage, event) for stage in stages for event in _events(stage)]


def _events(stage: ReportStage) -> Sequence[Mapping[str, object]]:
    health = stage.result.get("health")
    events = health.get("events") if isinstance(health, Mapping) else None
    return [event for event in events if isinstance(event, Mapping)] if isinstance(events, list | tuple) else []


def _sentence(stage: ReportStage, event: Mapping[str, object]) -> Content:
    followed = _FOLLOWED.get(str(event.get("action")), "").format(lr_scale=event.get("lr_scale", 1.0))
    return [element("b", stage.name), f", epoch {event.get('epoch')}: {event.get('sentence')}. {followed}".rstrip()]
