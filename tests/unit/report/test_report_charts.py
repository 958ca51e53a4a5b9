"""Charts: valid SVG, marks where the figures are, text that stays readable, every model told apart without colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from components.report.charts import radius_charts, sweep_charts, tradeoff_charts
from components.report.curves import curve_cards
from components.report.measurement import measurements
from components.report.plots import WIDTH, Axis, Point, Series, chart, fraction_axis, key_mark, mark, number_axis

SVG = "{http://www.w3.org/2000/svg}"


def charts_of(markup: list[str]) -> list[ET.Element]:
    found = [one for text in markup for one in ET.fromstring(f"<div>{text}</div>").iter(f"{SVG}svg")]
    assert found
    return found


@pytest.fixture
def drawn(stages) -> list[ET.Element]:
    rows, styles = measurements(stages, sweep=False), {"pretrain": 0, "adversarial": 2, "adversarial-patch": 3}
    sweep = measurements(stages, sweep=True)
    made = [*radius_charts(rows, styles), *tradeoff_charts(rows, styles), *sweep_charts(sweep, styles)]
    return charts_of([*made, *curve_cards(stages, styles)])


def test_every_chart_can_be_read_without_seeing_it(drawn):
    for one in drawn:
        assert one.get("role") == "img"
        title, desc = one.find(f"{SVG}title"), one.find(f"{SVG}desc")
        assert title is not None
        assert desc is not None
        assert one.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert len(desc.text or "") > 20


def test_text_is_at_least_twelve_pixels_on_a_narrow_screen(drawn):
    narrow = 390 - 2 * 16 - 2 * 8 - 2  # margins of the page, of the figure, and its border
    for one in drawn:
        _, _, width, _ = map(float, one.get("viewBox", "").split())
        assert float(one.get("font-size", 0)) * narrow / width >= 12
        assert not [text for text in one.iter(f"{SVG}text") if text.get("font-size")]


def test_everything_stays_inside_the_drawing(drawn):
    for one in drawn:
        _, _, width, height = map(float, one.get("viewBox", "").split())
        for shape in one.iter():
            for key, limit in (
                ("cx", width),
                ("x", width),
                ("x2", width),
                ("cy", height),
                ("y", height),
                ("y2", height),
            ):
                if shape.get(key) is not None and shape.tag != f"{SVG}tspan":
                    assert -1 <= float(shape.get(key, 0)) <= limit + 1


def test_a_mark_stands_where_its_figure_is():
    x, y = Axis(0, 10, [(0, "0"), (10, "10")]), fraction_axis("accuracy (%)")
    points = [Point(0, 0.0), Point(5, 0.5), Point(10, 1.0)]
    root = ET.fromstring(chart("k", "t", "d", x, y, [Series("a", 0, points)], height=200))
    circles = [(float(one.get("cx", 0)), float(one.get("cy", 0))) for one in root.iter(f"{SVG}circle")]
    (left, low), (middle, half), (right, high) = circles
    assert (middle, half) == ((left + right) / 2, (low + high) / 2)
    assert low > high
    assert right <= WIDTH


def test_radius_lines_begin_at_the_clean_accuracy_and_keep_the_strongest_attack(stages):
    weak = replace(stages[7], rows=[{**stages[7].rows[1], "attack": "APGD-CE", "robust_accuracy": 0.99}])
    text = "".join(radius_charts(measurements([stages[7], weak]), {"adversarial": 0}))
    assert "adversarial: clean 95.0" in text
    assert "APGD-CE, n" not in text.split("<figure>")[1].split("</desc>")[1]


def test_styles_differ_in_shape_and_colour():
    looks = {mark(style, 0, 0) for style in range(8)}
    assert len(looks) == 8
    shapes = {re.sub(r' class="[^"]*"', "", mark(style, 0, 0)) for style in range(4)}
    assert len(shapes) == 4
    assert "hollow" in mark(0, 0, 0, filled=False)
    assert "<svg" in key_mark(3)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 20.0], ["0", "5", "10", "15", "20"]),
        ([0.05, 0.2], ["0", "0.05", "0.1", "0.15", "0.2"]),
        ([0.0], ["0", "0.25", "0.5", "0.75", "1"]),
    ],
)
def test_ticks_are_round(values, ticks):
    assert [text for _, text in number_axis("", values, start=0.0).ticks] == ticks


def test_epochs_are_whole():
    axis = number_axis("epoch", [1, 2, 3], whole=True)
    assert [text for _, text in axis.ticks] == ["1", "2", "3"]
    assert (axis.low, axis.high) == (1, 3)


def test_a_long_history_stays_small(stages):
    long = replace(stages[3], history=[{"epoch": i, "loss": 1.0 / i} for i in range(1, 30_000)])
    (card,) = curve_cards([long], {})
    assert len(card) < 40_000
    assert "epoch 29999" in card
    (line,) = re.findall(r'<polyline points="([^"]*)"', card)
    first, last = (float(pair.split(",")[0]) for pair in (line.split()[0], line.split()[-1]))
    assert first < 51
    assert last == WIDTH - 14


def test_missing_pictures_are_said(stages, tmp_path: Path):
    from components.report.gallery import MOST_SAMPLES, galleries

    page = tmp_path / "page.png"
    page.write_text("<html>")
    broken = [{**stages[7].gallery[0], "clean": str(page), "adversarial": "/nowhere.png", "difference": None}]
    (text,) = galleries([replace(stages[7], gallery=broken)])
    assert text.count("image missing") == 3
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0")
    (smooth,) = galleries([replace(stages[7], gallery=[{**stages[7].gallery[0], "clean": str(large)}])])
    assert smooth.count('class="pixels"') == 2
    (many,) = galleries([replace(stages[7], gallery=list(stages[7].gallery) * 5)])
    assert many.count("<article") == MOST_SAMPLES
    assert "6 more samples" in many
