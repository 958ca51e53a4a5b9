"""Two models on the same images are compared image by image, also where one was measured on more of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from components.report.compare import NotComparable, compare, compare_stages, overlaps
from components.report.data import ReportStage, measurements
from components.report.model_pairs import config_differences, radius_gains, stem_pairs
from components.report.page import render
from tests.unit.report.paired_evaluations import evaluation, kept, short_row

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
    assert found.relation == "higher"
    text = plain(found.words)
    assert text == ("higher by 27.5 points on the same 40 images (95 % +13.2 to +40.4; 11 images against 0, p < 0.001)")
    assert compare(other, one).relation == "lower"


def test_a_smaller_evaluation_is_compared_on_its_images_alone():
    """The 100 images begin with the 40; on all of them the first model would look worse than on the common ones."""
    larger = evaluation("a", {L2: kept(CONV + "0" * 60)})
    smaller = evaluation("b", {L2: kept(PATCH)})
    assert larger.conditions.images_digest != smaller.conditions.images_digest
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
    assert isinstance(refused, NotComparable)
    assert refused.why.endswith("differ in the images")


def test_another_version_of_the_attack_is_not_compared():
    one = evaluation("a", {L2: kept(CONV)})
    found = compare(*of(one, evaluation("b", {L2: kept(PATCH)}, attack_library="pyautoattack 9")))
    assert (found.relation, found.words) == ("not comparable", "not comparable: they differ in the attack's version")


def test_no_difference_is_not_called_equality():
    one, other = of(evaluation("a", {L2: kept("1" * 20 + "0" * 20)}), evaluation("b", {L2: kept("1" * 18 + "0" * 22)}))
    found = compare(one, other)
    assert found.relation == "not shown"
    assert plain(found.words).startswith("no difference shown on the same 40 images (+5.0 points, 95 % ")
    assert plain(found.words).endswith("2 images against 0, p = 0.500)")


def test_the_shorter_attack_is_read_off_the_whole_attack():
    """An image that only FAB-T broke is robust under the shorter attack that the other model was measured with."""
    whole = evaluation("a", {LINF: kept("1111ff0000")})
    whole = replace(whole, rows=[*whole.rows, short_row(whole)])
    full, short = of(whole)
    assert sum(full.images.robust) == 4
    assert sum(short.images.robust) == 6


def test_a_shorter_attack_decides_image_by_image_too():
    full = evaluation("a", {LINF: kept("1" * 30 + "0" * 10)})
    short = evaluation("b", {("Linf", 0.15, "apgd-ce+apgd-t"): kept("1" * 15 + "0" * 25)})
    assert compare(*of(full, short)).relation == "higher"
    better = evaluation("b", {("Linf", 0.15, "apgd-ce+apgd-t"): kept("1" * 40)})
    assert compare(*of(full, better)).relation == "not comparable"


def test_the_stems_are_compared_on_the_same_images():
    conv = evaluation("a", {L2: kept(CONV + "1" * 60)})
    patch = evaluation("b", {L2: kept(PATCH)}, stem="patch")
    ((pair,),) = stem_pairs(of(conv, patch))
    assert (pair.relation, pair.paired.n) == ("higher", 40)


BASE = ReportStage("a", "adversarial", config={"init": "pretrain", "attack": {"norm": "Linf", "eps": 0.15}})
RADIUS = ReportStage("radius", "radius", config={"init": "a", "attack": {"norm": "Linf", "eps": 0.22}})


def test_the_gain_at_the_larger_radius_is_stated():
    base = evaluation("a", {LINF: kept("1" * 68 + "0" * 32), LARGER: kept("1" * 10 + "0" * 30)})
    tuned = evaluation("radius", {LARGER: kept("1" * 20 + "0" * 20)}, kind="radius")
    stages = [BASE, RADIUS, base, tuned]
    (text,) = radius_gains(stages, measurements(stages))
    assert plain(text).startswith(
        "“radius” against “a” under Linf 0.22 (the radius it was trained for): higher by 25.0"
    )
    assert "p = 0.002" in plain(text)
    page = plain(render({"name": "x"}, stages, datetime(2026, 1, 1, tzinfo=UTC)))
    assert "higher by 25.0 points on the same 40 images" in page


def test_a_larger_radius_that_was_not_measured_is_named():
    base = evaluation("a", {LINF: kept("1" * 10)})
    tuned = evaluation("radius", {LINF: kept("1" * 10)}, kind="radius")
    stages = [BASE, RADIUS, base, tuned]
    missing, other = radius_gains(stages, measurements(stages))
    assert "were not both measured at the radius that “radius” was trained for" in missing
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
    fields, behind, clean = config_differences("conv", "patch", stages)
    assert fields == (
        "“conv” and “patch” differ in attack.steps (2 against 3); “conv” starts from “convstem”, “patch” from “pretrain”."
    )
    assert behind == "Only in the history of “conv”: “convstem” (convstem, 5 epochs)."
    assert clean.startswith("Epochs of training without an attack: 13 in total for “conv”, 8 for “patch”.")


def test_equal_trainings_are_called_equal_and_their_own_ancestors_are_compared():
    stages = [
        trained("pretrain-conv", "pretrain", 8, init="random", model={"name": "m", "stem": "conv"}),
        trained("pretrain-patch", "pretrain", 8, init="random", model={"name": "m", "stem": "patch"}, ema=0.9),
        trained("conv", "adversarial", 12, init="pretrain-conv", attack=ATTACK),
        trained("patch", "adversarial", 12, init="pretrain-patch", attack=ATTACK),
    ]
    text = config_differences("conv", "patch", stages)
    assert text[0].startswith("“conv” and “patch” are equal in every other field of their configuration")
    assert text[3].startswith("“pretrain-conv” and “pretrain-patch” differ in ema (none against 0.9)")
    assert len(text) == 4, "equal clean epochs need no word"
    assert config_differences("conv", "nowhere", stages) == [
        "The configuration of “nowhere” is not a part of this run."
    ]


def test_continued_training_on_other_data_or_under_the_same_threat_is_no_fine_tuning_to_a_radius():
    base = evaluation("a", {LINF: kept("1" * 10)})
    other_data = replace(RADIUS, config={**RADIUS.config, "data": "shapes"})
    same_threat = replace(RADIUS, config={**BASE.config, "init": "a"})
    for stage in (other_data, same_threat):
        stages = [BASE, stage, base]
        assert radius_gains(stages, measurements(stages)) == []
