"""What the page claims: intervals alone, conditions that differ, the headline, the stems, the paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.report.compare import compare
from components.report.data import ReportStage
from components.report.figures import radius
from components.report.headline import find_headline, sentences
from components.report.measurement import Measurement, measurements
from components.report.paper import PUBLISHED, against_paper
from components.report.stems import stem_pairs


def figure(robust: float, low: float | None, high: float | None, **more: object) -> Measurement:
    row = {
        "stage": "adversarial",
        "name": "a",
        "model": "convnext_tiny",
        "stem": "conv",
        "dataset": "imagenet",
        "resolution": 224,
        "norm": "Linf",
        "eps": 4 / 255,
        "attack": "AutoAttack",
        "n": 100,
        "clean_accuracy": 0.7,
        "robust_accuracy": robust,
        "interval": [low, high],
    }
    return Measurement.from_row(row | more)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ((0.6, 0.5, 0.7), (0.5, 0.4, 0.6), "indistinct"),
        ((0.6, 0.5, 0.7), (0.4, 0.3, 0.5), "indistinct"),  # they touch
        ((0.6, 0.5, 0.7), (0.6, 0.5, 0.7), "indistinct"),
        ((0.6, 0.5, 0.7), (0.3, 0.2, 0.4), "higher"),
        ((0.3, 0.2, 0.4), (0.6, 0.5, 0.7), "lower"),
        ((0.6, None, 0.7), (0.3, 0.2, 0.4), "unknown"),
    ],
)
def test_intervals_decide(first, second, outcome):
    found = compare(figure(*first), figure(*second))
    assert found.outcome == outcome
    alone = "no difference shown by the two intervals alone at n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}100"
    assert (alone in found.words) == (outcome == "indistinct")


def test_the_words_name_sizes_and_difference():
    found = compare(figure(0.65, 0.5, 0.7), figure(0.5, 0.4, 0.6, n=50)).words.replace("\N{NO-BREAK SPACE}", " ")
    assert found.startswith("no difference shown by the two intervals alone at n = 100 and n = 50 (+15.0 points)")
    assert found.endswith("there are no common images to compare")
    assert compare(figure(0.3, 0.2, 0.4), figure(0.6, 0.5, 0.7)).words.startswith("lower by 30.0 points")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"norm": "L2"}, "norm"),
        ({"eps": 8 / 255}, "radius"),
        ({"eps": 8 / 255, "attack": "APGD-CE"}, "radius"),
        ({"resolution": 256}, "resolution"),
        ({"dataset": "digits"}, "data set"),
    ],
)
def test_other_conditions_are_not_compared(change, word):
    found = compare(figure(0.9, 0.8, 1.0), figure(0.1, 0.0, 0.2, **change))
    assert found.outcome == "unlike"
    assert found.words.startswith(f"not comparable: {word}")


def test_a_shorter_attack_only_decides_against_the_lower_figure():
    full, short = figure(0.6, 0.5, 0.7), {"attack": "APGD-CE+APGD-T"}
    assert compare(full, figure(0.0, 0.0, 0.04, **short)).outcome == "higher"
    assert compare(figure(0.0, 0.0, 0.04, **short), full).outcome == "lower"
    assert compare(full, figure(0.9, 0.8, 1.0, **short)).outcome == "unlike"
    assert compare(full, figure(0.55, 0.5, 0.6, **short)).outcome == "unlike"
    assert compare(full, figure(0.0, 0.0, 0.04, attack="FGSM")).outcome == "unlike"


def test_the_headline_is_computed(stages):
    found = find_headline(measurements(stages, sweep=False))
    assert found.robust is not None
    assert found.clean is not None
    assert (found.robust.name, found.clean.name, found.rivals) == ("radius", "pretrain", 3)
    said = " ".join(sentences(found)).replace("\N{NO-BREAK SPACE}", " ")
    assert "Under Linf 0.15 (AutoAttack, n = 100)" in said
    assert "69.0 % [59.4–77.2]" in said
    assert "the highest of 3 adversarially trained models" in said
    assert "0.0 % [0.0–3.7] under the same conditions" in said
    assert "higher by 69.0 points" in said


def test_the_headline_does_not_claim_what_is_not_so(stages):
    collapsed = [
        replace(stage, rows=[{**row, "robust_accuracy": 0.02, "interval": [0.0, 0.07]} for row in stage.rows])
        for stage in stages
    ]
    said = " ".join(sentences(find_headline(measurements(collapsed))))
    assert "no difference shown" in said
    assert "higher by" not in said


def test_the_headline_without_a_clean_or_a_robust_model(stages):
    robust = [stage for stage in stages if stage.name != "evaluate-pretrain"]
    assert sentences(find_headline(measurements(robust)))[1] == "No cleanly trained model was measured at this radius."
    clean = [stage for stage in stages if stage.name == "evaluate-pretrain"]
    assert sentences(find_headline(measurements(clean)))[0].startswith("No adversarially trained model was measured.")


def test_a_clean_model_under_the_shorter_attack_stands_beside(stages):
    short = [
        replace(stage, rows=[{**row, "attack": "APGD-CE+APGD-T"} for row in stage.rows])
        if stage.name == "evaluate-pretrain"
        else stage
        for stage in stages
    ]
    said = " ".join(sentences(find_headline(measurements(short))))
    assert "under APGD-CE+APGD-T at the same radius" in said
    assert "higher by 69.0 points" in said


def test_stems_are_paired_threat_by_threat(stages):
    (pairs,) = stem_pairs(measurements(stages, sweep=False))
    assert [pair.first.threat for pair in pairs] == ["Linf 0.05", "Linf 0.15", "Linf 0.2", "L2 1", "L1 10"]
    assert {(pair.first.name, pair.second.name) for pair in pairs} == {("adversarial", "adversarial-patch")}
    assert [pair.outcome for pair in pairs] == ["indistinct"] * 4 + ["higher"]


def test_stems_are_listed_by_norm_then_radius():
    threats = [("L1", 0.1), ("Linf", 0.3), ("Linf", 0.2), ("L2", 0.05)]
    rows = [
        figure(0.5, 0.4, 0.6, stem=s, name=s, norm=norm, eps=eps) for norm, eps in threats for s in ("conv", "patch")
    ]
    (pairs,) = stem_pairs(rows)
    assert [pair.first.threat for pair in pairs] == ["Linf 0.2", "Linf 0.3", "L2 0.05", "L1 0.1"]


def test_stems_of_other_networks_are_not_paired():
    rows = [figure(0.5, 0.4, 0.6), figure(0.4, 0.3, 0.5, stem="patch", model="vit_small", name="b")]
    assert stem_pairs(rows) == []
    assert len(stem_pairs([rows[0], replace(rows[1], model="convnext_tiny")])) == 1


def test_the_papers_figure_stands_beside_ours():
    (found,) = against_paper([figure(0.49, 0.476, 0.504, n=5000)], {"imagenet": 1000})
    assert found.comparable
    assert found.published.robust == pytest.approx(0.4946)
    assert "-0.5 points".replace("-", "\N{MINUS SIGN}") in found.words
    assert "inside our interval" in found.words
    (lower,) = against_paper([figure(0.40, 0.31, 0.49)])
    assert "outside our interval" in lower.words
    assert "n = 100 here, 5000 there" in lower.words


@pytest.mark.parametrize(
    ("change", "classes", "reason"),
    [
        ({"dataset": "digits"}, {}, "data set digits, not ImageNet"),
        ({}, {"imagenet": 100}, "100 classes, not 1000"),
        ({"dataset": "imagenette"}, {}, "data set imagenette, not ImageNet"),
        ({"attack": "APGD-CE"}, {}, "APGD-CE, not AutoAttack"),
        ({"stage": "convstem"}, {}, "trained without an attack"),
    ],
)
def test_small_data_is_marked_not_comparable(change, classes, reason):
    (found,) = against_paper([figure(0.9, 0.8, 1.0, **change)], classes)
    assert not found.comparable
    assert found.words == f"not comparable: {reason}"


@pytest.mark.parametrize("change", [{"eps": 0.15}, {"resolution": 32}, {"model": "convnext_micro"}, {"norm": "L2"}])
def test_what_was_not_published_has_no_partner(change):
    assert against_paper([figure(0.5, 0.4, 0.6, **change)]) == []


def test_imported_weights_are_taken_for_what_the_file_holds():
    (found,) = against_paper([figure(0.49, 0.4, 0.5, stage="pretrain", name="released")], imported={"released"})
    assert found.comparable


def test_fine_tuned_models_are_held_against_fine_tuned_ones():
    assert against_paper([figure(0.24, 0.2, 0.3, eps=8 / 255)]) == []
    assert against_paper([figure(0.49, 0.4, 0.5, stage="radius")]) == []
    (found,) = against_paper([figure(0.3, 0.2, 0.4, eps=8 / 255, stage="radius")])
    assert (found.published.robust, found.published.source) == (0.295, "author")


def test_both_ways_of_naming_a_network_find_its_figures():
    for model, stem in (("convnext_tiny_cvst", "conv"), ("convnext_tiny.fb_in1k", "ConvStem")):
        assert len(against_paper([figure(0.5, 0.4, 0.6, model=model, stem=stem)])) == 1
    assert len({(p.title, p.norm, p.eps, p.resolution) for p in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (4 / 255, "4/255"),
        (8 / 255, "8/255"),
        (0.15, "0.15"),
        (0.5 / 255, "0.5/255"),
        (2.0, "2"),
        (75.0, "75"),
        (0.2, "0.2"),
    ],
)
def test_radii_are_written_as_the_field_writes_them(eps, text):
    assert radius(eps) == text


def test_a_row_falls_back_on_the_conditions():
    stage = ReportStage(
        "e", "evaluate", rows=[{"name": "m"}], conditions={"precision": "fp32", "attack_library": "lib 1"}
    )
    (row,) = measurements([stage])
    assert (row.precision, row.version, row.source) == ("fp32", "lib 1", "e")
