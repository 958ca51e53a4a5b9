"""The experiment's section: paired differences equal the statistics, refusals are named, dominated points are named."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.report.charts import fine_share, relative
from components.report.config import ExperimentConfig
from components.report.data import Measurement, ReportStage
from components.report.experiment import examine, frontier, summary
from components.report.page import build_report
from components.report.stage import model_name, with_recipe_names
from components.result_rows import ResultRow, read_results, read_verdicts
from components.statistics import paired_difference
from components.wording import paired_difference_text
from pipeline.recipe import build
from tests.recipes import small
from tests.result_documents import results_document, row_document


def draw(seed: int, n: int, share: float) -> list[bool]:
    source = random.Random(seed)
    return [source.random() < share for _ in range(n)]


def stage(
    name: str,
    robust: list[bool],
    right: list[bool] | None = None,
    *,
    resolution: int = 32,
    attacked: int = 0,
    **more: Any,
) -> ReportStage:
    """An evaluation at Linf 0.1; `attacked` images of it (the first ones) under attack, all by default."""
    right, n = right or [True] * len(robust), len(robust)
    attacked = attacked or n
    images = [
        {
            "index": 7 * i,
            "label": 1,
            "clean_prediction": 1 if right[i] else 0,
            "verdicts": [("robust" if robust[i] else "APGD-CE") if i < attacked else None],
            "predictions": [1 if i < attacked else None],
            "distances": [0.0 if i < attacked else None],
        }
        for i in range(n)
    ]
    threat = {"norm": "Linf", "eps": 0.1, "attack": "apgd-ce", "title": "APGD-CE Linf 0.1", "n": attacked}
    row = row_document(
        stage=f"adversarial-{name}",
        model="convnext_micro",
        stem="patch",
        dataset="digits",
        resolution=resolution,
        eps=0.1,
        attack="APGD-CE",
        n=n,
        clean_accuracy=sum(right) / n,
        robust_accuracy=sum(robust) / n,
        interval=[0.0, 1.0],
    )
    results = read_results(results_document([row], dataset="digits"), where=name)
    verdicts = {"resolutions": [{"resolution": resolution, "threats": [threat], "images": images}]}
    found = ReportStage(
        name=f"evaluate-{name}",
        kind="evaluate",
        config={"model": f"adversarial-{name}"},
        rows=results.rows,
        conditions=results.conditions,
        verdicts=read_verdicts(verdicts, where=name),
    )
    if found.conditions and "conditions" in more:
        more["conditions"] = found.conditions.model_copy(update=more["conditions"])
    return replace(found, **more)


def config(**more: Any) -> ExperimentConfig:
    given = {"question": "Which?", "baseline": "evaluate-a", "against": ["evaluate-a", "evaluate-b"], **more}
    return ExperimentConfig.model_validate(given)


def test_differences_are_those_of_the_same_images():
    one, other = draw(1, 80, 0.8), draw(2, 80, 0.5)
    found = examine(config(), [stage("a", other), stage("b", one)])
    clean, robust = found.findings
    assert clean.what == "clean"
    assert (robust.first, robust.second, robust.what) == ("adversarial-b", "adversarial-a", "Linf 0.1, APGD-CE")
    assert robust.difference == paired_difference(one, other)
    assert robust.difference.shows
    assert robust.shown == paired_difference_text(robust.difference)
    assert robust.shown.startswith(f"higher by {100 * robust.difference.difference:.1f} points on the same 80 images (")
    assert summary(found)[0].startswith("“adversarial-b” against “adversarial-a”, Linf 0.1, APGD-CE: higher by")


def test_what_a_small_number_of_images_cannot_show_is_stated():
    one = [True] * 15 + [False] * 5
    other = [True] * 14 + [False] * 6
    _, robust = examine(config(), [stage("a", other), stage("b", one)]).findings
    assert not robust.difference.shows
    assert robust.shown.startswith("no difference shown on the same 20 images (+5.0")
    assert "disagree on 1: a difference below" in robust.not_shown
    assert "this difference would need about" in robust.not_shown
    assert robust.smallest > 0.05


def test_a_threat_with_fewer_images_is_compared_on_the_first_ones():
    one, other = draw(3, 30, 0.6), draw(4, 30, 0.6)
    less = stage("b", one, attacked=12)
    clean, robust = examine(config(), [stage("a", other), less]).findings
    assert clean.difference.n == 30
    assert robust.difference == paired_difference(one[:12], other[:12])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"images_digest": "e" * 64}}, "they differ in the images"),
        ({"conditions": {"precision": "bf16"}}, "they differ in precision"),
        ({"verdicts": None}, "evaluate-b left no verdicts"),
    ],
)
def test_pairs_on_other_images_are_refused(change, message):
    found = examine(config(), [stage("a", [True] * 5), stage("b", [True] * 5, **change)])
    assert found.findings == []
    assert message in found.refused[0].why


def test_another_resolution_is_compared_and_noted():
    found = examine(config(), [stage("a", [True] * 9), stage("b", [False] * 9, resolution=40)])
    assert {one.note for one in found.findings} == {"at 40 px against 32 px"}


def point(name: str, clean: float, robust: float) -> Measurement:
    row = row_document(stage=name, eps=0.1, clean_accuracy=clean, robust_accuracy=robust)
    return Measurement(ResultRow.model_validate(row), ReportStage("e", "evaluate"))


def test_the_frontier_names_dominated_points_and_those_that_dominate_them():
    rows = [
        point("a", 0.9, 0.3),
        point("b", 0.8, 0.5),
        point("c", 0.8, 0.4),
        point("d", 0.7, 0.2),
        point("e", 0.9, 0.3),
    ]
    found = frontier(rows)
    assert set(found.names) == {"a", "b", "e"}, "equal points do not dominate each other"
    assert {name: set(others) for name, others in found.dominated.items()} == {"c": {"b"}, "d": {"a", "b", "c", "e"}}


def test_the_page_has_the_section_with_every_pair_and_no_id_twice(tmp_path: Path):
    stages = [stage("a", draw(1, 40, 0.4), draw(9, 40, 0.9)), stage("b", draw(2, 40, 0.9))]
    stages[0] = replace(stages[0], spectra=SPECTRA)
    asked = config(frontier=["evaluate-a", "evaluate-b"], limits="Nothing about <ImageNet>.")
    found = examine(asked, stages)
    text = build_report({"name": "x"}, stages, tmp_path / "r.html", experiment=found).read_text(encoding="utf-8")
    root = ET.fromstring(text.split("\n", 1)[1])
    part = next(one for one in root.iter("section") if one.get("id") == "experiment")
    message = " ".join("".join(part.itertext()).split())
    assert "Which?" in message
    assert "Dominated: “adversarial-a”, by “adversarial-b”" in message
    assert "Nothing about <ImageNet>." in message
    assert len([line for line in part.iter("tr") if line.find("td") is not None]) == 2
    assert any(one.get("id") == "spectra" for one in root.iter("section"))
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))


SPECTRA = {
    "stem": [
        {
            "name": "stem.0",
            "kernel": [4, 4],
            "stride": 4,
            "frequency": [0, 0.25, 0.5],
            "power": [8, 2, 0],
            "count": [1, 4, 4],
        }
    ],
    "gradients": [{"resolution": 32, "n": 9, "frequency": [0, 0.25, 0.5], "power": [1, 1, 1], "count": [1, 4, 4]}],
}


def test_spectra_are_drawn_relative_to_their_mean_and_summed_above_a_quarter():
    flat, falling = SPECTRA["gradients"][0], SPECTRA["stem"][0]
    assert relative(flat) == [(0, 0.0), (0.25, 0.0), (0.5, 0.0)]
    assert relative(falling) == [(0, pytest.approx(0.6532, abs=1e-4)), (0.25, pytest.approx(0.0512, abs=1e-4))]
    assert fine_share(flat) == pytest.approx(4 / 9)
    assert fine_share(falling) == 0
    assert fine_share({**flat, "power": [0, 0, 0]}) is None
    assert relative({**flat, "power": [0, 0, 0]}) == []


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ({"question": "q"}, "report.experiment.pairs: this experiment compares nothing"),
        (
            {"question": "q", "baseline": "evaluate"},
            "report.experiment.against: `baseline` and `against` need each other",
        ),
        ({"question": "q", "frontier": ["evaluat"]}, "there is none of that name, did you mean 'evaluate'?"),
        ({"question": "q", "frontier": ["adversarial"]}, "stages.report.experiment.frontier.0: an experiment compares"),
        ({"question": "q", "pairs": [{"first": "evaluate", "second": "evaluate"}]}, "compared with itself"),
        ({"question": "q", "pair": []}, "report.experiment.pair: unknown key, did you mean 'pairs'?"),
        ({"pairs": []}, "report.experiment.question: this key is required"),
    ],
)
def test_mistakes_are_one_line(experiment, message):
    with pytest.raises(UserError) as caught:
        build(small(report={"experiment": experiment}))
    assert message in str(caught.value)


def test_a_reused_stage_is_shown_under_the_names_of_this_recipe():
    recipe = {"stages": {"evaluate-middle": {"kind": "evaluate", "model": "adversarial-middle", "data": None}}}
    config = {"model": "adversarial-2", "data": "digits", "n": 60}
    assert with_recipe_names("evaluate-middle", config, recipe) == {
        "model": "adversarial-middle",
        "data": "digits",
        "n": 60,
    }
    assert model_name("evaluate-middle", recipe) == "adversarial-middle"
    assert model_name("evaluate-middle", {}) == ""
    assert with_recipe_names("another", config, recipe) == config
    network = {"stages": {"pretrain": {"model": {"name": "convnext_micro"}}}}
    assert model_name("pretrain", network) == "", "a network is no stage"
