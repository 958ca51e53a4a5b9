"""Spectra of stem filters and of input gradients, drawn beside the accuracies of the same models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.report.charts import Styles, figure
from components.report.data import ReportStage
from components.report.figures import NOT_RECORDED, percent
from components.report.markup import Content, Markup, element, join
from components.report.measurement import Measurement
from components.report.pairs import model_of
from components.report.plots import Axis, Point, Series, chart, key_mark, number_axis
from components.report.tables import Column, table

FINE = 0.25
"""Cycles per pixel above which structure is called fine: half of what a row of pixels can carry."""

NYQUIST = 0.5
"""The highest frequency of a row of pixels; what lies beyond is in the corners of the spectrum and is not drawn."""

_FLOOR = 1e-12
"""Relative power below which a point is rounding error and not drawn."""


def spectra_body(stages: Sequence[ReportStage], styles: Styles) -> Markup | None:
    """Charts and table of all stages that measured spectra; None where none did."""
    measured = [stage for stage in stages if stage.spectra]
    if not measured:
        return None
    note = element(
        "p",
        "How the power of the stem's filters, and of the gradient of the loss by the image, spreads over spatial "
        "frequencies, averaged over directions. 0 on the vertical axis is the mean over all frequencies (white noise "
        "lies there throughout), 1 is ten times that. Filters of a later convolution see an image that the ones "
        "before have already shrunk.",
        class_="note",
    )
    charts = [drawn for drawn in (*_stem_charts(measured, styles), *_gradient_charts(measured, styles)) if drawn]
    return join(note, element("div", charts, class_="charts"), _table(measured, styles))


def relative(spectrum: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(frequency, log10 of power over the mean power of all coefficients) of each ring that has power."""
    power, count = spectrum["power"], spectrum["count"]
    mean = sum(p * c for p, c in zip(power, count, strict=True)) / (sum(count) or 1)
    if mean <= 0:
        return []
    pairs = zip(spectrum["frequency"], power, strict=True)
    return [(f, math.log10(p / mean)) for f, p in pairs if p > _FLOOR * mean]


def fine_share(spectrum: Mapping[str, Any]) -> float | None:
    """The share of the power above `FINE` cycles per pixel; None where there is no power at all."""
    weighted = [(f, p * c) for f, p, c in zip(spectrum["frequency"], spectrum["power"], spectrum["count"], strict=True)]
    whole = sum(w for _, w in weighted)
    return sum(w for f, w in weighted if f > FINE) / whole if whole > 0 else None


def _stem_charts(stages: Sequence[ReportStage], styles: Styles) -> Iterator[Markup | None]:
    deepest = max(len(stage.spectra.get("stem", [])) for stage in stages)
    for depth in range(deepest):
        some = [(stage, stage.spectra["stem"][depth]) for stage in stages if len(stage.spectra.get("stem", [])) > depth]
        place = "first" if depth == 0 else "second" if depth == 1 else f"{depth + 1}th"
        lines = [_series(f"{model_of(stage)}, {_kernel(found)}", stage, found, styles) for stage, found in _once(some)]
        yield _chart(f"spectrum-stem-{depth}", f"Filters of the stem's {place} convolution", lines)


def _gradient_charts(stages: Sequence[ReportStage], styles: Styles) -> Iterator[Markup | None]:
    sides = sorted({found["resolution"] for stage in stages for found in stage.spectra.get("gradients", [])})
    for side in sides:
        lines = [
            _series(model_of(stage), stage, found, styles)
            for stage in stages
            for found in stage.spectra.get("gradients", [])
            if found["resolution"] == side
        ]
        yield _chart(f"spectrum-gradient-{side}", f"Gradient of the loss by the image, {side} px", lines)


def _once(
    pairs: Sequence[tuple[ReportStage, Mapping[str, Any]]],
) -> list[tuple[ReportStage, Mapping[str, Any]]]:
    """One stage a model: several evaluations of one model have the same filters."""
    return list({model_of(stage): (stage, found) for stage, found in pairs}.values())


def _kernel(found: Mapping[str, Any]) -> str:
    return f"{found['kernel'][0]}×{found['kernel'][1]}, stride {found['stride']}"


def _series(label: str, stage: ReportStage, found: Mapping[str, Any], styles: Styles) -> Series:
    drawn = [
        Point(f, power, tip=f"{model_of(stage)}: {f:.3f} cycles per pixel: {10**power:.3g} of the mean")
        for f, power in relative(found)
        if f <= NYQUIST
    ]
    return Series(label, styles.get(model_of(stage), 0), drawn)


def _chart(key: str, title: str, lines: Sequence[Series]) -> Markup | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    x = Axis(0.0, NYQUIST, [(i / 10, f"{i / 10:g}") for i in range(6)], "cycles per pixel")
    y = number_axis("log10 of relative power", [point.y for line in lines for point in line.points])
    spoken = "; ".join(f"{line.label}, last point {line.points[-1].tip}" for line in lines[:24])
    return figure(chart(key, title, spoken, x, y, lines), element("b", title), lines)


def _table(stages: Sequence[ReportStage], styles: Styles) -> Markup:
    columns = (
        Column("model", "lead"),
        Column("filters above 1/4 cycle per px", "num"),
        Column("gradient above 1/4 cycle per px", "num"),
        Column("clean", "num"),
        Column("robust", "wide"),
    )
    rows = [_cells(stage, styles) for stage in stages]
    note = element(
        "p", f"Shares of the power; of white noise {percent(1 - math.pi * FINE**2)} lie above 1/4.", class_="note"
    )
    return join(note, table(columns, rows, "cards"))


def _cells(stage: ReportStage, styles: Styles) -> list[Content]:
    name = model_of(stage)
    rows = [Measurement.from_row(row, stage.conditions, stage) for row in stage.rows]
    robust = "; ".join(f"{row.threat}: {percent(row.robust)}" for row in rows) or NOT_RECORDED
    stem, gradients = stage.spectra.get("stem", []), stage.spectra.get("gradients", [])
    return [
        [key_mark(styles.get(name, 0), line=False), element("b", name)],
        percent(fine_share(stem[0])) if stem else NOT_RECORDED,
        percent(fine_share(gradients[0])) if gradients else NOT_RECORDED,
        percent(rows[0].clean) if rows else NOT_RECORDED,
        robust,
    ]
