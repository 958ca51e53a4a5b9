"""Warnings that a training recorded are on the page, with the action that followed."""

from __future__ import annotations

from dataclasses import replace

from components.report.data import ReportStage
from components.report.sections import training_warnings
from tests.unit.report.test_report_page import page, visible

EVENTS = [
    {"epoch": 4, "signature": "chance", "sentence": "training never left chance", "action": "warn", "lr_scale": 1.0},
    {"epoch": 9, "signature": "collapse", "sentence": "training collapsed", "action": "rollback", "lr_scale": 0.25},
]


def test_every_event_is_on_the_page_with_the_action_that_followed(recipe, stages, tmp_path):
    first = next(stage for stage in stages if stage.history)
    ill = [replace(one, result={"monitor": {"events": EVENTS}}) if one is first else one for one in stages]
    text = visible(page(recipe, ill, tmp_path))
    assert f"{first.name}, epoch 4: training never left chance. The recipe says to warn, so training continued." in text
    assert (
        f"{first.name}, epoch 9: training collapsed. Training was rolled back to its last good validation, with 0.25"
        in text
    )
    assert "Warnings during training" not in visible(page(recipe, stages, tmp_path))


def test_results_without_events_give_no_warnings():
    for result in ({}, {"monitor": None}, {"monitor": {"events": []}}, {"monitor": []}):
        assert training_warnings([ReportStage(name="a", kind="adversarial", result=result)]) == []
