"""Charts of the page: accuracies over radius, resolution and epoch, clean against robust, stem beside stem, spectra.

The spectra are those of stem filters and of input gradients: as charts, and as shares of power beside the models'
accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from components.report.compare import Comparison, figure_text
from components.report.data import Measurement, ReportStage, grouped
from components.report.experiment import Frontier
from components.report.svg import Axis, Point, Series, chart, fraction_axis, number_axis
from components.threats import STANDARD, attack_order, norm_order, radius_text
from components.wording import count, percent, sample_size

Styles = Mapping[str, int]
"""Training stage -> number of its style, the same in all charts."""

CLEAN_STYLE = 7
"""Style of clean accuracies and of the frontier, beside robust accuracies."""

_MOST_DESCRIBED = 24
"""Measurements that the description of a chart lists; a screen reader reads them one after the other."""


@dataclass(frozen=True)
class Figure:
    """One or more drawings in a frame.

    Attributes:
        title: in bold.
        caption: after the title.
        drawings: SVG.
        legend: the series that the legend explains.
    """

    title: str
    caption: str
    drawings: Sequence[Markup]
    legend: Sequence[Series] = ()


def radius_charts(rows: Sequence[Measurement], styles: Styles) -> list[Figure]:
    """One chart for each data set and norm; each model is a line that begins at its clean accuracy at radius 0."""
    groups = grouped(rows, lambda one: (one.row.dataset, one.row.norm)).items()
    ordered = sorted(groups, key=lambda item: norm_order(item[0][1]))
    return [_radius_chart(f"radius-{i}", *key, some, styles) for i, (key, some) in enumerate(ordered)]


def _radius_chart(key: str, dataset: str, norm: str, rows: Sequence[Measurement], styles: Styles) -> Figure:
    lines = grouped(rows, lambda one: one.stage)
    series = [Series(name, styles.get(name, 0), _radius_points(some)) for name, some in lines.items()]
    x = _radius_axis(norm, [one.row.eps for one in rows])
    dodge = min(5.0, 20.0 / len(series))
    title = f"Robust accuracy against the {norm} radius on {dataset}"
    drawing = chart(key, title, _description(rows), x, fraction_axis("accuracy (%)"), series, dodge=dodge)
    return Figure(norm, f" on {dataset}", [drawing], series)


def _radius_points(rows: Sequence[Measurement]) -> list[Point]:
    """The clean accuracy at radius 0, then at each radius the result of the strongest attack on most images."""
    best: dict[float, Measurement] = {}
    for one in sorted(rows, key=lambda one: (-attack_order(one.row.attack), one.row.n)):
        best[one.row.eps] = one
    clean = max(rows, key=lambda one: one.row.n)
    tip = f"{clean.stage}: clean {percent(clean.row.clean_accuracy)}"
    return [Point(0.0, clean.row.clean_accuracy, tip=tip), *(_point(best[eps], eps) for eps in sorted(best))]


def _radius_axis(norm: str, radii: Sequence[float]) -> Axis:
    """Round ticks; the measured radii themselves if they are few and written as fractions of 255."""
    known = sorted(set(radii))
    if len(known) > 4 or not all("/" in radius_text(eps) for eps in known):
        ticks = number_axis("", known, start=0.0).ticks
    else:
        ticks = [(0.0, "0"), *((eps, radius_text(eps)) for eps in known)]
    top = ticks[-1][0]
    return Axis(-0.04 * top, 1.04 * top, ticks, f"radius ({norm})")


def sweep_charts(rows: Sequence[Measurement], styles: Styles) -> list[Figure]:
    """One chart for each model, data set and threat that was measured at two resolutions or more: clean and robust."""
    groups = grouped(rows, lambda one: (one.stage, one.row.dataset, one.row.threat, one.row.attack)).values()
    several = [some for some in groups if len({one.row.resolution for one in some}) > 1]
    return [_sweep_chart(f"sweep-{i}", some, styles) for i, some in enumerate(several)]


def _sweep_chart(key: str, rows: Sequence[Measurement], styles: Styles) -> Figure:
    first = rows[0]
    ordered = sorted(rows, key=lambda one: one.row.resolution)
    clean = [
        Point(row.resolution, row.clean_accuracy, tip=f"{row.resolution} px: clean {percent(row.clean_accuracy)}")
        for row in (one.row for one in ordered)
    ]
    robust = [_point(one, one.row.resolution) for one in ordered]
    series = [
        Series("clean", CLEAN_STYLE, clean, dashed=True),
        Series(f"{first.row.threat}, {first.row.attack}", styles.get(first.stage, 0), robust),
    ]
    sides = sorted({one.row.resolution for one in ordered})
    margin = (sides[-1] - sides[0]) * 0.06
    x = Axis(sides[0] - margin, sides[-1] + margin, [(s, str(s)) for s in sides], "test resolution (px)")
    title = f"Accuracy of {first.stage} at several test resolutions"
    drawing = chart(key, title, _description(ordered), x, fraction_axis("accuracy (%)"), series)
    return Figure(first.stage, f" on {first.row.dataset} · {_sizes(ordered)}", [drawing], series)


def tradeoff_charts(rows: Sequence[Measurement], styles: Styles) -> list[Figure]:
    """One chart for each condition under which two models or more were measured: clean against robust accuracy."""
    groups = grouped(rows, lambda one: one.setting).values()
    several = [some for some in groups if len({one.stage for one in some}) > 1]
    return [_accuracies_chart(f"tradeoff-{i}", some, styles) for i, some in enumerate(several)]


def frontier_chart(key: str, found: Frontier, styles: Styles) -> Figure:
    """Clean against robust accuracy with the frontier as a line; dominated models have hollow marks."""
    points = [_accuracies_point(one) for one in found.front]
    line = Series("frontier", CLEAN_STYLE, points, dashed=True)
    return _accuracies_chart(key, found.rows, styles, line, frozenset(found.dominated))


def _accuracies_chart(
    key: str,
    rows: Sequence[Measurement],
    styles: Styles,
    line: Series | None = None,
    dominated: frozenset[str] = frozenset(),
) -> Figure:
    first = rows[0].row
    series = [
        Series(
            f"{one.stage} (dominated)" if one.stage in dominated else one.stage,
            styles.get(one.stage, 0),
            [_accuracies_point(one, one.stage not in dominated if line else first.attack == STANDARD.title)],
            line=False,
        )
        for one in rows
    ]
    x = fraction_axis("clean accuracy (%)", [one.row.clean_accuracy for one in rows])
    x = Axis(x.low - 0.01, x.high + 0.01, x.ticks, x.label)
    title = f"Clean against robust accuracy under {first.threat} on {first.dataset}"
    drawn = [line, *series] if line else series
    description = "; ".join(
        f"{one.stage}: clean {percent(one.row.clean_accuracy)}, {figure_text(one)}" for one in rows[:_MOST_DESCRIBED]
    )
    drawing = chart(key, title, description, x, fraction_axis("robust accuracy (%)"), drawn)
    caption = f" on {first.dataset} · {first.attack} · {_sizes(rows)}"
    return Figure(first.threat, caption, [drawing], series)


def _accuracies_point(one: Measurement, filled: bool = True) -> Point:
    point = _point(one, one.row.clean_accuracy)
    return Point(point.x, point.y, point.low, point.high, point.tip, filled)


def stem_charts(pairs: Sequence[Sequence[Comparison]], styles: Styles) -> list[Figure]:
    """One chart for each two models that `stem_pairs` compares."""
    return [_stem_chart(f"stems-{i}", some, styles) for i, some in enumerate(pairs)]


def _stem_chart(key: str, pairs: Sequence[Comparison], styles: Styles) -> Figure:
    """PatchStem and ConvStem side by side, one position on the x axis for each threat."""
    patch, conv = [pair.second for pair in pairs], [pair.first for pair in pairs]
    ticks = [(float(i), f"{one.row.norm}\n{radius_text(one.row.eps)}") for i, one in enumerate(patch)]
    series = [_stem_series(patch, -0.12, styles), _stem_series(conv, 0.12, styles)]
    title = "Robust accuracy of the two stems in each threat model"
    x = Axis(-0.5, len(pairs) - 0.5, ticks)
    description = _description([one for pair in zip(patch, conv, strict=True) for one in pair])
    drawing = chart(key, title, description, x, fraction_axis("robust accuracy (%)"), series, height=258)
    first = conv[0].row
    caption = f" on {first.dataset}, {count(first.resolution)} px"
    return Figure(f"{first.model}, {first.kind}", caption, [drawing], series)


def _stem_series(rows: Sequence[Measurement], shift: float, styles: Styles) -> Series:
    label = f"{rows[0].row.stem_title} ({rows[0].stage})"
    points = [_point(one, i + shift) for i, one in enumerate(rows)]
    return Series(label, styles.get(rows[0].stage, 0), points, line=False)


def curve_charts(stages: Sequence[ReportStage], styles: Styles) -> list[Figure]:
    """A figure for every stage that has a history: accuracies on held-out images, and the training loss, by epoch."""
    figures = [_curves(f"curve-{i}", stage, styles.get(stage.name, 0)) for i, stage in enumerate(stages)]
    return [figure for figure in figures if figure.drawings]


def _curves(key: str, stage: ReportStage, style: int) -> Figure:
    loss = Series("training loss", style, _epochs(stage, "loss", lambda value: f"loss {value:.3f}"))
    clean = _epochs(stage, "clean_accuracy", lambda value: f"clean {percent(value)}")
    robust = _epochs(stage, "robust_accuracy", lambda value: f"under attack {percent(value)}")
    accuracies = [
        Series("clean (validation)", CLEAN_STYLE, clean, dashed=True),
        Series("under attack (validation)", style, robust),
    ]
    accuracies = [line for line in accuracies if line.points]
    drawings = []
    if accuracies:
        drawings.append(_curve(f"{key}-a", stage.name, "Accuracy", fraction_axis("accuracy (%)"), accuracies))
    if loss.points:
        y = number_axis("training loss", [0.0, *(point.y for point in loss.points)])
        drawings.append(_curve(f"{key}-l", stage.name, "Training loss", y, [loss]))
    return Figure(stage.name, f" · {stage.kind}" if stage.kind != stage.name else "", drawings, accuracies)


def _curve(key: str, name: str, what: str, y: Axis, lines: Sequence[Series]) -> Markup:
    epochs = [point.x for line in lines for point in line.points]
    last = "; ".join(f"{line.label}, last {line.points[-1].tip}" for line in lines)
    x = number_axis("epoch", epochs, whole=True)
    return chart(key, f"{what} of {name} by epoch", last, x, y, lines, height=210)


def _epochs(stage: ReportStage, key: str, text: Callable[[float], str]) -> list[Point]:
    """The values of one key of the history; epochs without it are left out."""
    known: list[Mapping[str, Any]] = [entry for entry in stage.history if entry.get(key) is not None]
    return [Point(entry["epoch"], entry[key], tip=f"epoch {entry['epoch']:g}: {text(entry[key])}") for entry in known]


def _point(one: Measurement, x: float) -> Point:
    row = one.row
    tip = (
        f"{row.stage}: {row.threat}, {row.attack}, n = {count(row.n)}: {figure_text(one)}; "
        f"clean {percent(row.clean_accuracy)}"
    )
    return Point(x, row.robust_accuracy, one.low, one.high, tip, filled=row.attack == STANDARD.title)


def _sizes(rows: Sequence[Measurement]) -> str:
    first, *others = sorted({one.row.n for one in rows})
    return " and ".join([sample_size(first), *(count(n) for n in others)])


def _description(rows: Sequence[Measurement]) -> str:
    return "; ".join(f"{one.stage}, {one.row.threat}: {figure_text(one)}" for one in rows[:_MOST_DESCRIBED])


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
