"""The whole page: numbers equal the input, nothing from elsewhere, no injection, well-formed, missing parts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.report.data import ReportStage
from components.report.page import MARK, build_report
from tests.unit.report.conftest import conditions

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\x00\x1b'


def page(recipe: dict[str, Any], stages: list[ReportStage], folder: Path) -> str:
    return build_report(recipe, stages, folder / "out" / "report.html").read_text(encoding="utf-8")


def tree(text: str) -> ET.Element:
    head, body = text.split("\n", 1)
    assert head == "<!DOCTYPE html>"
    return ET.fromstring(body)


def visible(text: str) -> str:
    return " ".join("".join(tree(text).itertext()).replace("\N{NO-BREAK SPACE}", " ").split())


def test_a_report_begins_with_its_mark(recipe, stages, tmp_path):
    assert MARK in page({**recipe, "name": "x" * 100}, stages, tmp_path)[:1000]


def test_every_figure_is_in_the_main_table_with_its_conditions(recipe, stages, tmp_path):
    root = tree(page(recipe, stages, tmp_path))
    section = next(one for one in root.iter("section") if one.get("id") == "results")
    found = []
    for line in section.iter("tr"):
        cells = {cell.get("data-label"): "".join(cell.itertext()) for cell in line.iter("td")}
        if cells:
            found.append({key: text.replace("\N{NO-BREAK SPACE}", " ") for key, text in cells.items()})
    rows = [row for stage in stages for row in stage.rows]
    assert len(found) == len(rows) == 24
    expected = sorted(
        (
            f"{row.norm} {row.eps:g}",
            f"{100 * row.robust_accuracy:.1f} %",
            "{:.1f}–{:.1f}".format(*(100 * bound for bound in row.interval)),
            f"{100 * row.clean_accuracy:.1f} %",
            f"{row.attack} pyautoattack 0.2.0{', standard' if row.attack == 'AutoAttack' else ''}",
            str(row.n),
            str(row.resolution),
            "fp32",
        )
        for row in rows
    )
    keys = ("threat", "robust accuracy", "95 % interval", "clean", "attack", "n", "px", "precision")
    assert sorted(tuple(cells[key] for key in keys) for cells in found) == expected


def test_the_page_says_what_was_run(recipe, stages, tmp_path):
    text = visible(page(recipe, stages, tmp_path))
    for part in ("quickstart", recipe["description"], "11 stages", "0123456789ab", "reused", "robust accuracy 0.68"):
        assert part in text
    assert "The same in every evaluation" in text
    assert "No result of this run has a published counterpart: measured were convnext_micro, ConvStem" in text


def test_the_worst_case_comes_from_the_union(recipe, stages, tmp_path):
    text = visible(page(recipe, stages, tmp_path))
    assert "Linf 0.15 · L2 1 · L1 10" in text
    assert "38.0 %" in text


def test_nothing_is_fetched_and_nothing_runs(recipe, stages, tmp_path):
    text = page(recipe, stages, tmp_path)
    root = tree(text)
    assert not [
        one for one in root.iter() if one.tag in {"script", "link", "iframe", "object", "embed", "base", "form"}
    ]
    for one in root.iter():
        for key, value in one.attrib.items():
            assert not key.startswith("on")
            if key in {"src", "href"}:
                assert value.startswith(("data:image/png;base64,", "#"))
    style = next(root.iter("style")).text or ""
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http-equiv", "")


def test_links_lead_to_sections(recipe, stages, tmp_path):
    root = tree(page(recipe, stages, tmp_path))
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    targets = [one.get("href", "")[1:] for one in root.iter("a")]
    assert targets
    assert set(targets) <= set(ids)


def test_text_of_people_stays_text(stages, tmp_path):
    names = dict.fromkeys(("kind", "stage", "model", "stem", "dataset", "attack"), HOSTILE)
    row = stages[6].rows[0].model_copy(update=names)
    details = row.details.model_copy(update={"targets_note": HOSTILE, "attack_library": HOSTILE, "precision": HOSTILE})
    noted = row.model_copy(update={"norm": HOSTILE, "details": details})
    threats = (stages[6].worst_cases[0].threats[0].model_copy(update={"norm": HOSTILE}),)
    worst = stages[6].worst_cases[0].model_copy(update={**names, "threats": threats})
    seen = {"label": HOSTILE, "adversarial_prediction": HOSTILE, "norm": HOSTILE}
    sample = stages[7].gallery[0].model_copy(update=seen)
    nasty = ReportStage(
        name=HOSTILE,
        kind=HOSTILE,
        run_id=HOSTILE,
        fingerprint=HOSTILE,
        state=HOSTILE,
        config={"model": HOSTILE, HOSTILE: HOSTILE},
        result={HOSTILE: HOSTILE},
        history=[{"epoch": 1, "loss": 1.0}],
        rows=[row, noted],
        worst_cases=[worst],
        conditions=conditions(precision=HOSTILE, dataset=HOSTILE),
        gallery=[sample],
    )
    text = page({"name": HOSTILE, "summary": HOSTILE, HOSTILE: [HOSTILE]}, [nasty, *stages], tmp_path)
    root = tree(text)
    assert not list(root.iter("script"))
    assert not [one for one in root.iter() if "onerror" in one.attrib]
    assert "<script" not in text
    assert "alert(1)" in visible(text)


@pytest.mark.parametrize("part", ["history", "rows", "worst_cases", "conditions", "gallery", "config", "result"])
def test_a_missing_part_is_left_out(recipe, stages, tmp_path, part):
    empty = {"conditions": None, "config": {}, "result": {}}.get(part, ())
    without = [replace(stage, **{part: empty}) for stage in stages]
    root = tree(page(recipe, without, tmp_path))
    sections = {one.get("id") for one in root.iter("section")}
    gone = {
        "history": {"curves"},
        "rows": {"results", "stems", "radius", "sweep", "tradeoff"},
        "worst_cases": {"worst"},
        "gallery": {"gallery"},
        "config": {"sweep"},
    }.get(part, set())
    everything = {
        "results",
        "worst",
        "stems",
        "radius",
        "sweep",
        "tradeoff",
        "curves",
        "gallery",
        "paper",
        "stages",
        "conditions",
        "recipe",
    }
    assert sections == everything - gone


def test_no_stages_at_all(tmp_path):
    text = visible(page({}, [], tmp_path))
    assert "No robust accuracy was measured in this run." in text


def test_no_sweep(recipe, stages, tmp_path):
    root = tree(page(recipe, [stage for stage in stages if stage.kind != "sweep"], tmp_path))
    assert "sweep" not in {one.get("id") for one in root.iter("section")}


def test_a_failed_stage_is_named(recipe, stages, tmp_path):
    failed = ReportStage(name="transfer", kind="transfer", state="failed", result={"error": "out of memory"})
    text = visible(page(recipe, [*stages, failed], tmp_path))
    assert "Not complete: transfer failed." in text
    assert "out of memory" in text
    assert "Not complete" not in visible(page(recipe, stages, tmp_path))


def test_stages_without_configuration_show_everything_that_does_not_depend_on_it(recipe, stages, tmp_path):
    """Which model was trained under attack, and which evaluation is a sweep, is known from the configuration alone."""
    text = visible(page(recipe, [replace(stage, config={}) for stage in stages], tmp_path))
    assert "No adversarially trained model was measured." in text
    assert text.count("fp32") >= 24


def test_written_whole_or_not_at_all(recipe, stages, tmp_path, monkeypatch):
    out = tmp_path / "new" / "report.html"
    out.parent.mkdir()
    out.write_text("the old page")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        build_report(recipe, stages, out)
    assert out.read_text() == "the old page"
    assert [path.name for path in out.parent.iterdir() if path != out] == []


def test_a_folder_that_is_a_file(recipe, stages, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        build_report(recipe, stages, tmp_path / "file" / "report.html")
