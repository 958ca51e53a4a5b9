"""Charts: valid SVG, marks where the figures are, text that stays readable, every model distinct without colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.report.charts import Figure, curve_charts, radius_charts, sweep_charts, tradeoff_charts
from components.report.data import ReportStage, measurements
from components.report.page import render
from components.report.sections import MOST_SAMPLES
from components.report.svg import (
    WIDTH,
    Axis,
    Point,
    Series,
    chart,
    element,
    fraction_axis,
    interval_bar,
    key_mark,
    mark,
    number_axis,
)

SVG = "{http://www.w3.org/2000/svg}"


def charts_of(figures: list[Figure]) -> list[ET.Element]:
    found = [ET.fromstring(drawing) for figure in figures for drawing in figure.drawings]
    assert found
    assert {one.tag for one in found} == {f"{SVG}svg"}
    return found


@pytest.fixture
def drawn(stages) -> list[ET.Element]:
    rows, styles = measurements(stages, sweep=False), {"pretrain": 0, "adversarial": 2, "adversarial-patch": 3}
    sweep = measurements(stages, sweep=True)
    made = [*radius_charts(rows, styles), *tradeoff_charts(rows, styles), *sweep_charts(sweep, styles)]
    return charts_of([*made, *curve_charts(stages, styles)])


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
    row = stages[7].rows[1].model_copy(update={"attack": "APGD-CE", "robust_accuracy": 0.99})
    weak = replace(stages[7], name="weak", rows=[row])
    figures = radius_charts(measurements([stages[7], weak]), {"adversarial": 0})
    text = "".join(drawing for figure in figures for drawing in figure.drawings)
    assert "adversarial: clean 95.0" in text
    assert figures[0].title == "Linf"
    assert "APGD-CE, n" not in figures[0].drawings[0].split("</desc>")[1]


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
    (figure,) = curve_charts([long], {})
    (drawing,) = figure.drawings
    assert len(drawing) < 40_000
    assert "epoch 29999" in drawing
    (line,) = re.findall(r'<polyline points="([^"]*)"', drawing)
    first, last = (float(pair.split(",")[0]) for pair in (line.split()[0], line.split()[-1]))
    assert first < 51
    assert last == WIDTH - 14


def test_elements_escape_text_and_leave_drawings_as_they_are():
    assert element("text", "a < b", class_="x", y=None) == '<text class="x">a &lt; b</text>'
    assert element("g", element("circle", r=1.5)) == '<g><circle r="1.5"/></g>'
    assert element("text", x='"><script>') == '<text x="&#34;&gt;&lt;script&gt;"/>'


def test_a_bar_shows_the_value_and_its_interval_on_one_scale():
    root = ET.fromstring(interval_bar(0.5, 0.25, 0.75, style=9))
    track, band, circle = (next(root.iter(name)) for name in ("line", "rect", "circle"))
    start, end = float(track.get("x1", 0)), float(track.get("x2", 0))
    assert float(circle.get("cx", 0)) == (start + end) / 2
    assert float(band.get("x", 0)) == start + (end - start) / 4
    assert float(band.get("width", 0)) == (end - start) / 2
    assert circle.get("class") == "mark s1", "styles repeat after eight"


def test_missing_pictures_are_named(stages, tmp_path: Path):
    text = gallery_page(stages[7], [{"clean": "page.png", "adversarial": "/nowhere.png", "difference": ""}], tmp_path)
    assert text.count("image missing") == 3


def test_large_pictures_are_shown_smoothly(stages, tmp_path: Path):
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0")
    assert gallery_page(stages[7], [{"clean": str(tmp_path / "large.png")}], tmp_path).count('class="pixels"') == 2


def test_a_gallery_is_cut_and_counts_the_rest(stages, tmp_path: Path):
    text = gallery_page(stages[7], [{}] * (MOST_SAMPLES + 6), tmp_path)
    assert text.count("<article") == MOST_SAMPLES
    assert "6 more samples" in text


def gallery_page(stage: ReportStage, changes: list[dict[str, str]], folder: Path) -> str:
    """The page of one evaluation whose gallery is its first sample, once for each of `changes`."""
    (folder / "page.png").write_text("<html>")
    entry = stage.gallery[0]
    entries = [
        entry.model_copy(update={k: str(folder / v) if v == "page.png" else v for k, v in change.items()})
        for change in changes
    ]
    return render({}, [replace(stage, gallery=entries)], datetime(2025, 3, 14, tzinfo=UTC))
