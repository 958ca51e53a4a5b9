"""Spectra of stem filters and of input gradients, as charts and as shares of power beside the models' accuracies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.report.charts import Figure, Styles
from components.report.data import ReportStage
from components.report.svg import Axis, Point, Series, chart, number_axis
from components.wording import percent

FINE = 0.25
"""Cycles per pixel above which structure is called fine: half of what a row of pixels can carry."""

NYQUIST = 0.5
"""The highest frequency of a row of pixels. Higher ones exist only in the corners of the spectrum and are not drawn."""

WHITE_NOISE_SHARE = 1 - math.pi * FINE**2
"""Share of the power of white noise above `FINE`."""

_FLOOR = 1e-12
"""Relative power below which a point is rounding error and not drawn."""


@dataclass(frozen=True)
class SpectrumRow:
    """One model in the table of spectra.

    Attributes:
        stem, gradient: share of the power above `FINE`, of the first convolution's filters and of the input gradient;
            None if it was not measured or there is no power.
        clean: accuracy; None if the evaluation has no rows.
        robust: robust accuracies, each with its threat.
    """

    model: str
    stem: float | None
    gradient: float | None
    clean: float | None
    robust: str


def spectrum_charts(stages: Sequence[ReportStage], styles: Styles) -> list[Figure]:
    """Charts of all stages that measured spectra: one for each convolution of the stem, one for each resolution."""
    charts = [*_stem_charts(stages, styles), *_gradient_charts(stages, styles)]
    return [figure for figure in charts if figure.legend]


def spectrum_rows(stages: Sequence[ReportStage]) -> list[SpectrumRow]:
    """One row for each stage that measured spectra."""
    return [_row(stage) for stage in stages if stage.spectra]


def relative(spectrum: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(frequency, log10 of power over the mean power of all coefficients) of each ring that has power."""
    power, count = spectrum["power"], spectrum["count"]
    mean = sum(p * c for p, c in zip(power, count, strict=True)) / (sum(count) or 1)
    if mean <= 0:
        return []
    pairs = zip(spectrum["frequency"], power, strict=True)
    return [(f, math.log10(p / mean)) for f, p in pairs if p > _FLOOR * mean]


def fine_share(spectrum: Mapping[str, Any]) -> float | None:
    """The share of the power above `FINE` cycles per pixel; None if there is no power at all."""
    weighted = [(f, p * c) for f, p, c in zip(spectrum["frequency"], spectrum["power"], spectrum["count"], strict=True)]
    whole = sum(w for _, w in weighted)
    return sum(w for f, w in weighted if f > FINE) / whole if whole > 0 else None


def _stem_charts(stages: Sequence[ReportStage], styles: Styles) -> list[Figure]:
    # Several evaluations of one model have the same filters; one of them is drawn.
    models = {stage.measured_model: stage for stage in stages if stage.spectra.get("stem")}
    deepest = max((len(stage.spectra["stem"]) for stage in models.values()), default=0)
    figures = []
    for depth in range(deepest):
        some = [
            (name, stage.spectra["stem"][depth]) for name, stage in models.items() if len(stage.spectra["stem"]) > depth
        ]
        number = "first" if depth == 0 else "second" if depth == 1 else f"{depth + 1}th"
        lines = [_series(name, f"{name}, {_kernel(spectrum)}", spectrum, styles) for name, spectrum in some]
        figures.append(_chart(f"spectrum-stem-{depth}", f"Filters of the stem's {number} convolution", lines))
    return figures


def _gradient_charts(stages: Sequence[ReportStage], styles: Styles) -> list[Figure]:
    measured = [(stage.measured_model, spectrum) for stage in stages for spectrum in stage.spectra.get("gradients", [])]
    figures = []
    for side in sorted({spectrum["resolution"] for _, spectrum in measured}):
        lines = [_series(name, name, one, styles) for name, one in measured if one["resolution"] == side]
        figures.append(_chart(f"spectrum-gradient-{side}", f"Gradient of the loss by the image, {side} px", lines))
    return figures


def _kernel(spectrum: Mapping[str, Any]) -> str:
    return f"{spectrum['kernel'][0]}×{spectrum['kernel'][1]}, stride {spectrum['stride']}"


def _series(model: str, label: str, spectrum: Mapping[str, Any], styles: Styles) -> Series:
    points = [
        Point(f, power, tip=f"{model}: {f:.3f} cycles per pixel: {10**power:.3g} of the mean")
        for f, power in relative(spectrum)
        if f <= NYQUIST
    ]
    return Series(label, styles.get(model, 0), points)


def _chart(key: str, title: str, lines: Sequence[Series]) -> Figure:
    lines = [line for line in lines if line.points]
    if not lines:
        return Figure(title, "", ())
    x = Axis(0.0, NYQUIST, [(i / 10, f"{i / 10:g}") for i in range(6)], "cycles per pixel")
    y = number_axis("log10 of relative power", [point.y for line in lines for point in line.points])
    description = "; ".join(f"{line.label}, last point {line.points[-1].tip}" for line in lines[:24])
    return Figure(title, "", [chart(key, title, description, x, y, lines)], lines)


def _row(stage: ReportStage) -> SpectrumRow:
    stem, gradients = stage.spectra.get("stem", []), stage.spectra.get("gradients", [])
    return SpectrumRow(
        model=stage.measured_model,
        stem=fine_share(stem[0]) if stem else None,
        gradient=fine_share(gradients[0]) if gradients else None,
        clean=stage.rows[0].clean_accuracy if stage.rows else None,
        robust="; ".join(f"{row.threat}: {percent(row.robust_accuracy)}" for row in stage.rows),
    )
