"""What the page claims: intervals alone, conditions that differ, the headline, the stems, the paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.report.compare import compare
from components.report.data import Measurement, ReportStage, measurements
from components.report.headline import find_headline, headline_sentences
from components.report.model_pairs import stem_pairs
from components.report.paper import against_paper, published_results
from components.result_rows import Conditions, ResultRow
from tests.result_documents import CONDITIONS, row_document

ATTACK = {"norm": "Linf", "eps": 4 / 255}


def figure(
    robust: float, low: float, high: float, *, config: dict | None = None, classes: int = 1000, **more: object
) -> Measurement:
    """A measurement of a model that was trained with `config`; by default under attack at 4/255."""
    row = ResultRow.model_validate(row_document(robust_accuracy=robust, interval=[low, high], **more))
    source = ReportStage("e", "evaluate", conditions=Conditions.model_validate({**CONDITIONS, "classes": classes}))
    training = ReportStage(row.stage, row.kind, config={"attack": ATTACK} if config is None else config)
    return Measurement(row, source, training)


def with_rows(stage: ReportStage, **changes: object) -> ReportStage:
    return replace(stage, rows=[row.model_copy(update=changes) for row in stage.rows])


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        ((0.6, 0.5, 0.7), (0.5, 0.4, 0.6), "not shown"),
        ((0.6, 0.5, 0.7), (0.4, 0.3, 0.5), "not shown"),  # they touch
        ((0.6, 0.5, 0.7), (0.6, 0.5, 0.7), "not shown"),
        ((0.6, 0.5, 0.7), (0.3, 0.2, 0.4), "higher"),
        ((0.3, 0.2, 0.4), (0.6, 0.5, 0.7), "lower"),
    ],
)
def test_intervals_decide(first, second, relation):
    found = compare(figure(*first), figure(*second))
    assert found.relation == relation
    alone = "no difference shown by the two intervals alone at n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}100"
    assert (alone in found.words) == (relation == "not shown")


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
    assert found.relation == "not comparable"
    assert found.words.startswith(f"not comparable: {word}")


def test_a_shorter_attack_only_decides_against_the_lower_figure():
    full, short = figure(0.6, 0.5, 0.7), {"attack": "APGD-CE+APGD-T"}
    assert compare(full, figure(0.0, 0.0, 0.04, **short)).relation == "higher"
    assert compare(figure(0.0, 0.0, 0.04, **short), full).relation == "lower"
    assert compare(full, figure(0.9, 0.8, 1.0, **short)).relation == "not comparable"
    assert compare(full, figure(0.55, 0.5, 0.6, **short)).relation == "not comparable"
    assert compare(full, figure(0.0, 0.0, 0.04, attack="FGSM")).relation == "not comparable"


def test_the_headline_is_computed(stages):
    found = find_headline(measurements(stages, sweep=False))
    assert found.robust is not None
    assert found.clean is not None
    assert (found.robust.stage, found.clean.stage, found.rivals) == ("radius", "pretrain", 3)
    text = " ".join(headline_sentences(found)).replace("\N{NO-BREAK SPACE}", " ")
    assert "Under Linf 0.15 (AutoAttack, n = 100)" in text
    assert "69.0 % [59.4–77.2]" in text
    assert "the highest of 3 adversarially trained models" in text
    assert "0.0 % [0.0–3.7] under the same conditions" in text
    assert "higher by 69.0 points" in text


def test_the_headline_does_not_claim_what_is_not_so(stages):
    collapsed = [with_rows(stage, robust_accuracy=0.02, interval=(0.0, 0.07)) for stage in stages]
    text = " ".join(headline_sentences(find_headline(measurements(collapsed))))
    assert "no difference shown" in text
    assert "higher by" not in text


def test_the_headline_without_a_clean_or_a_robust_model(stages):
    robust = [stage for stage in stages if stage.name != "evaluate-pretrain"]
    assert (
        headline_sentences(find_headline(measurements(robust)))[1]
        == "No model trained without an attack was measured at this radius."
    )
    clean = [stage for stage in stages if stage.name == "evaluate-pretrain"]
    assert headline_sentences(find_headline(measurements(clean)))[0].startswith(
        "No adversarially trained model was measured."
    )


def test_a_clean_model_under_the_shorter_attack_stands_beside(stages):
    short = [
        with_rows(stage, attack="APGD-CE+APGD-T") if stage.name == "evaluate-pretrain" else stage for stage in stages
    ]
    text = " ".join(headline_sentences(find_headline(measurements(short))))
    assert "under APGD-CE+APGD-T at the same radius" in text
    assert "higher by 69.0 points" in text


def test_stems_are_paired_threat_by_threat(stages):
    (pairs,) = stem_pairs(measurements(stages, sweep=False))
    assert [pair.first.row.threat for pair in pairs] == ["Linf 0.05", "Linf 0.15", "Linf 0.2", "L2 1", "L1 10"]
    assert {(pair.first.stage, pair.second.stage) for pair in pairs} == {("adversarial", "adversarial-patch")}
    assert [pair.relation for pair in pairs] == ["not shown"] * 4 + ["higher"]


def test_stems_are_listed_by_norm_then_radius():
    threats = [("L1", 0.1), ("Linf", 0.3), ("Linf", 0.2), ("L2", 0.05)]
    rows = [
        figure(0.5, 0.4, 0.6, stem=s, stage=s, norm=norm, eps=eps) for norm, eps in threats for s in ("conv", "patch")
    ]
    (pairs,) = stem_pairs(rows)
    assert [pair.first.row.threat for pair in pairs] == ["Linf 0.2", "Linf 0.3", "L2 0.05", "L1 0.1"]


def test_stems_of_other_networks_are_not_paired():
    rows = [figure(0.5, 0.4, 0.6), figure(0.4, 0.3, 0.5, stem="patch", model="vit_small", stage="b")]
    assert stem_pairs(rows) == []
    same_network = replace(rows[1], row=rows[1].row.model_copy(update={"model": "convnext_tiny"}))
    assert len(stem_pairs([rows[0], same_network])) == 1


def test_the_papers_figure_stands_beside_ours():
    (found,) = against_paper([figure(0.49, 0.476, 0.504, n=5000)])
    assert found.comparable
    assert found.published.robust == pytest.approx(0.4946)
    assert "-0.5 points".replace("-", "\N{MINUS SIGN}") in found.words
    assert "inside our interval" in found.words
    (lower,) = against_paper([figure(0.40, 0.31, 0.49)])
    assert "outside our interval" in lower.words
    assert "n = 100 here, 5000 there" in lower.words


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "digits"}, "data set digits, not ImageNet"),
        ({"classes": 100}, "100 classes, not 1000"),
        ({"dataset": "imagenette"}, "data set imagenette, not ImageNet"),
        ({"attack": "APGD-CE"}, "APGD-CE, not AutoAttack"),
        ({"config": {"attack": None}}, "trained without an attack"),
    ],
)
def test_small_data_is_marked_not_comparable(change, reason):
    (found,) = against_paper([figure(0.9, 0.8, 1.0, **change)])
    assert not found.comparable
    assert found.words == f"not comparable: {reason}"


@pytest.mark.parametrize("change", [{"eps": 0.15}, {"resolution": 32}, {"model": "convnext_micro"}, {"norm": "L2"}])
def test_what_was_not_published_has_no_partner(change):
    assert against_paper([figure(0.5, 0.4, 0.6, **change)]) == []


def test_imported_weights_are_taken_for_what_the_file_holds():
    (found,) = against_paper([figure(0.49, 0.4, 0.5, config={"init": "file:released.pt", "attack": None})])
    assert found.comparable


def test_fine_tuned_models_are_compared_with_fine_tuned_ones():
    config = {"init": "base", "data": "imagenet", "attack": {"norm": "Linf", "eps": 8 / 255}}
    base = ReportStage("base", "adversarial", config={"data": "imagenet", "attack": ATTACK})
    tuned = replace(figure(0.3, 0.2, 0.4, eps=8 / 255, config=config), base=base)
    assert against_paper([figure(0.24, 0.2, 0.3, eps=8 / 255)]) == []
    assert against_paper([replace(figure(0.49, 0.4, 0.5, config=config), base=base)]) == []
    assert against_paper([replace(tuned, base=replace(base, config=config))]) == [], "the same radius again"
    (found,) = against_paper([tuned])
    assert (found.published.robust, found.published.source) == (0.295, "author")


def test_both_ways_of_naming_a_network_find_its_figures():
    for model, stem in (("convnext_tiny_cvst", "conv"), ("convnext_tiny.fb_in1k", "conv")):
        assert len(against_paper([figure(0.5, 0.4, 0.6, model=model, stem=stem)])) == 1


def test_every_published_result_is_listed_once_as_fractions():
    published = published_results()
    assert len(published) == 22
    assert len({(one.title, one.norm, one.eps, one.resolution) for one in published}) == len(published)
    assert all(0 < one.robust < one.clean < 1 for one in published)
    assert {one.threat for one in published} == {"Linf 4/255", "Linf 8/255", "L2 2", "L1 75"}
