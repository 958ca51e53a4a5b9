"""What training noticed stands on the page, with what followed."""

from __future__ import annotations

from dataclasses import replace

from components.report.data import ReportStage
from components.report.troubles import troubles
from tests.unit.report.test_report_page import page, visible

EVENTS = [
    {"epoch": 4, "signature": "chance", "sentence": "training never left chance", "action": "warn", "lr_scale": 1.0},
    {"epoch": 9, "signature": "collapse", "sentence": "training collapsed", "action": "back", "lr_scale": 0.25},
]


def test_every_event_is_told_with_what_followed(recipe, stages, tmp_path):
    first = next(stage for stage in stages if stage.history)
    ill = [replace(one, result={"health": {"events": EVENTS}}) if one is first else one for one in stages]
    text = visible(page(recipe, ill, tmp_path))
    assert f"{first.name}, epoch 4: training never left chance. The recipe says to warn, so training went on." in text
    assert f"{first.name}, epoch 9: training collapsed. Training went back to its last good probe, with 0.25" in text
    assert "What training noticed" not in visible(page(recipe, stages, tmp_path))


def test_results_without_events_or_of_another_form_say_nothing():
    for result in ({}, {"health": None}, {"health": {"events": []}}, {"health": {"events": ["x"]}}, {"health": []}):
        assert troubles([ReportStage(name="a", kind="adversarial", result=result)]) == []
