"""Two models on the same images are compared image by image, also where one was measured on more of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from components.report import ReportStage
from components.report.compare import compare, overlaps
from components.report.larger_radius import gains
from components.report.lineage import differences
from components.report.measurement import measurements
from components.report.page import render
from components.report.pairs import Refused, compare_stages
from components.report.stems import stem_pairs
from tests.unit.report.judged import evaluation, kept, short_row

L2 = ("L2", 2.0, "apgd-ce+apgd-t")
LINF, LARGER = ("Linf", 0.15, "autoattack"), ("Linf", 0.22, "apgd-ce+apgd-t")
CONV, PATCH = "1" * 32 + "0" * 8, "1" * 21 + "0" * 19
"""L2 2 of the quickstart: 80 % against 52.5 % of 40 images, 11 of them only the first's."""


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def of(*stages: ReportStage) -> list[Any]:
    return measurements(stages)


def test_a_difference_that_the_same_images_show_is_shown_though_the_intervals_overlap():
    one, other = of(evaluation("a", {L2: kept(CONV)}), evaluation("b", {L2: kept(PATCH)}))
    assert overlaps(one, other)
    found = compare(one, other)
    assert found.outcome == "higher"
    said = plain(found.words)
    assert said == ("higher by 27.5 points on the same 40 images (95 % +13.2 to +40.4; 11 images against 0, p < 0.001)")
    assert compare(other, one).outcome == "lower"


def test_a_smaller_evaluation_is_compared_on_its_images_alone():
    """The 100 images begin with the 40; on all of them the first model would look worse than on the common ones."""
    larger = evaluation("a", {L2: kept(CONV + "0" * 60)})
    smaller = evaluation("b", {L2: kept(PATCH)})
    assert larger.conditions["images_digest"] != smaller.conditions["images_digest"]
    found = compare(*of(larger, smaller))
    assert (found.paired.n, found.paired.only_first, found.paired.only_second) == (40, 11, 0)
    assert found.difference == pytest.approx(0.275)
    clean, robust = compare_stages(larger, smaller)
    assert (clean.what, robust.difference.n) == ("clean", 40)


@pytest.mark.parametrize(
    "change",
    [{"first": 1}, {"other data": True}],
)
def test_other_images_make_no_pairs(change):
    other = evaluation("b", {L2: kept(PATCH + "0")}, first=change.get("first", 0))
    if "other data" in change:
        other = replace(other, data="e" * 64)
    one = evaluation("a", {L2: kept(CONV)})
    found = compare(*of(one, other))
    assert found.paired is None
    assert "no common images" in found.words
    refused = compare_stages(one, other)
    assert isinstance(refused, Refused)
    assert refused.why.endswith("differ in the images")


def test_another_version_of_the_attack_is_not_compared():
    one = evaluation("a", {L2: kept(CONV)})
    found = compare(*of(one, evaluation("b", {L2: kept(PATCH)}, attack_library="pyautoattack 9")))
    assert (found.outcome, found.words) == ("unlike", "not comparable: they differ in the attack's version")


def test_no_difference_is_not_called_equality():
    one, other = of(evaluation("a", {L2: kept("1" * 20 + "0" * 20)}), evaluation("b", {L2: kept("1" * 18 + "0" * 22)}))
    found = compare(one, other)
    assert found.outcome == "indistinct"
    assert plain(found.words).startswith("no difference shown on the same 40 images (+5.0 points, 95 % ")
    assert plain(found.words).endswith("2 images against 0, p = 0.500)")


def test_the_short_form_is_read_off_the_whole_attack():
    """An image that only FAB-T broke is robust under the short form that the other model was given."""
    whole = evaluation("a", {LINF: kept("1111ff0000")})
    whole = replace(whole, rows=[*whole.rows, short_row(whole)])
    full, short = of(whole)
    assert sum(full.verdicts.robust) == 4
    assert sum(short.verdicts.robust) == 6


def test_a_shorter_attack_decides_image_by_image_too():
    full = evaluation("a", {LINF: kept("1" * 30 + "0" * 10)})
    short = evaluation("b", {("Linf", 0.15, "apgd-ce+apgd-t"): kept("1" * 15 + "0" * 25)})
    assert compare(*of(full, short)).outcome == "higher"
    better = evaluation("b", {("Linf", 0.15, "apgd-ce+apgd-t"): kept("1" * 40)})
    assert compare(*of(full, better)).outcome == "unlike"


def test_the_stems_are_compared_on_the_same_images():
    conv = evaluation("a", {L2: kept(CONV + "1" * 60)})
    patch = evaluation("b", {L2: kept(PATCH)}, stem="patch")
    ((pair,),) = stem_pairs(of(conv, patch))
    assert (pair.outcome, pair.paired.n) == ("higher", 40)


def radius_stage(**attack: Any) -> ReportStage:
    return ReportStage("radius", "radius", config={"init": "a", "attack": {"norm": "Linf", "eps": 0.22, **attack}})


def test_the_larger_radius_is_said_to_gain_there():
    base = evaluation("a", {LINF: kept("1" * 68 + "0" * 32), LARGER: kept("1" * 10 + "0" * 30)})
    tuned = evaluation("radius", {LARGER: kept("1" * 20 + "0" * 20)}, kind="radius")
    stages = [radius_stage(), base, tuned]
    (said,) = gains(stages, measurements(stages))
    assert plain(said).startswith(
        "“radius” against “a” under Linf 0.22 (the radius it was trained for): higher by 25.0"
    )
    assert "p = 0.002" in plain(said)
    page = plain(render({"name": "x"}, stages, datetime(2026, 1, 1, tzinfo=UTC)))
    assert "higher by 25.0 points on the same 40 images" in page


def test_a_larger_radius_that_was_not_measured_is_said():
    base = evaluation("a", {LINF: kept("1" * 10)})
    tuned = evaluation("radius", {LINF: kept("1" * 10)}, kind="radius")
    stages = [radius_stage(), base, tuned]
    missing, other = gains(stages, measurements(stages))
    assert "were not both measured at its own radius" in missing
    assert "under Linf 0.15 (not the radius it was trained for)" in other


def trained(name: str, kind: str, epochs: int, **config: Any) -> ReportStage:
    return ReportStage(name, kind, config={"epochs": epochs, "lr": 0.001, **config})


ATTACK = {"norm": "Linf", "eps": 0.15}


def test_what_differs_between_two_trainings_is_named():
    stages = [
        trained("pretrain", "pretrain", 8, init="random"),
        trained("convstem", "convstem", 5, init="pretrain"),
        trained("conv", "adversarial", 12, init="convstem", attack={**ATTACK, "steps": 2}),
        trained("patch", "adversarial", 12, init="pretrain", attack={**ATTACK, "steps": 3}),
    ]
    fields, behind, clean = differences("conv", "patch", stages)
    assert fields == (
        "“conv” and “patch” differ in attack.steps (2 against 3); “conv” starts from “convstem”, “patch” from “pretrain”."
    )
    assert behind == "Only behind “conv”: “convstem” (convstem, 5 epochs)."
    assert clean.startswith("Trained without an attack for 13 epochs in all behind “conv” and 8 behind “patch”")


def test_equal_trainings_are_called_equal_and_their_own_ancestors_are_compared():
    stages = [
        trained("pretrain-conv", "pretrain", 8, init="random", model={"name": "m", "stem": "conv"}),
        trained("pretrain-patch", "pretrain", 8, init="random", model={"name": "m", "stem": "patch"}, ema=0.9),
        trained("conv", "adversarial", 12, init="pretrain-conv", attack=ATTACK),
        trained("patch", "adversarial", 12, init="pretrain-patch", attack=ATTACK),
    ]
    said = differences("conv", "patch", stages)
    assert said[0].startswith("“conv” and “patch” are equal in every other field of their configuration")
    assert said[3].startswith("“pretrain-conv” and “pretrain-patch” differ in ema (none against 0.9)")
    assert len(said) == 4, "equal clean epochs need no word"
    assert differences("conv", "nowhere", stages) == ["The configuration of “nowhere” is not known here."]
