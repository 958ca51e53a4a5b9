"""Charts of measurements: against the radius, over resolutions, clean against robust, one stem beside the other."""

from __future__ import annotations

from collections.abc import Sequence

from components.report.compare import figure_words
from components.report.figures import NBSP, count, percent, radius
from components.report.markup import Content, Markup, element
from components.report.measurement import Measurement, attack_order, grouped, norm_order
from components.report.plots import Axis, Point, Series, chart, fraction_axis, key_mark, number_axis

Styles = dict[str, int]
"""The style number of every model's stage, the same in all charts."""

CLEAN_STYLE = 7
"""The style of clean accuracies beside robust ones."""


def figure(drawn: Markup, caption: Content, legend: Sequence[Series] = ()) -> Markup:
    """A chart in its frame: heading, drawing, legend."""
    keys = [element("li", key_mark(one.style, one.line, one.dashed), one.label) for one in legend]
    listed = element("ul", keys, class_="legend") if keys else None
    return element("figure", element("figcaption", caption), drawn, listed)


def radius_charts(rows: Sequence[Measurement], styles: Styles) -> list[Markup]:
    """One chart for each (data set, norm), every model a line that begins at its clean accuracy at radius 0."""
    known = [row for row in rows if row.robust is not None and row.eps is not None]
    groups = sorted(
        grouped(known, lambda row: (row.dataset, row.norm)).items(), key=lambda item: norm_order(item[0][1])
    )
    return [_radius_chart(f"radius-{i}", *key, some, styles) for i, (key, some) in enumerate(groups)]


def _radius_chart(key: str, dataset: str, norm: str, rows: Sequence[Measurement], styles: Styles) -> Markup:
    lines = grouped(rows, lambda row: row.name)
    series = [Series(name, styles.get(name, 0), _radius_points(some)) for name, some in lines.items()]
    x = _radius_axis(norm, [row.eps for row in rows if row.eps is not None])
    dodge = min(5.0, 20.0 / len(series))
    title = f"Robust accuracy against the {norm} radius on {dataset}"
    drawn = chart(key, title, _spoken(rows), x, fraction_axis("accuracy (%)"), series, dodge=dodge)
    return figure(drawn, [element("b", norm), f" on {dataset}"], series)


def _radius_points(rows: Sequence[Measurement]) -> list[Point]:
    """The clean accuracy at 0, then at each radius the figure of the strongest attack, of most images."""
    best: dict[float, Measurement] = {}
    for row in sorted(rows, key=lambda row: (-attack_order(row.attack), row.n or 0)):
        best[row.eps or 0.0] = row
    clean = max((row for row in rows if row.clean is not None), key=lambda row: row.n or 0, default=None)
    start = [Point(0.0, clean.clean or 0.0, tip=f"{clean.name}: clean {percent(clean.clean)}")] if clean else []
    return start + [_point(best[eps], eps) for eps in sorted(best)]


def _radius_axis(norm: str, radii: Sequence[float]) -> Axis:
    """Round ticks, or the measured radii themselves when they are few and written as fractions of 255."""
    known = sorted(set(radii))
    if len(known) > 4 or not all("/" in radius(eps) for eps in known):
        ticks = number_axis("", known, start=0.0).ticks
    else:
        ticks = [(0.0, "0"), *((eps, radius(eps)) for eps in known)]
    top = ticks[-1][0]
    return Axis(-0.04 * top, 1.04 * top, ticks, f"radius ({norm})")


def sweep_charts(rows: Sequence[Measurement], styles: Styles) -> list[Markup]:
    """One chart for each (model, data set) and threat measured at two resolutions or more: clean and robust."""
    known = [row for row in rows if row.robust is not None and row.resolution is not None]
    groups = grouped(known, lambda row: (row.name, row.dataset, row.threat, row.attack)).values()
    several = [some for some in groups if len({row.resolution for row in some}) > 1]
    return [_sweep_chart(f"sweep-{i}", some, styles) for i, some in enumerate(several)]


def _sweep_chart(key: str, rows: Sequence[Measurement], styles: Styles) -> Markup:
    first = rows[0]
    ordered = sorted(rows, key=lambda row: row.resolution or 0)
    clean = [
        Point(row.resolution or 0, row.clean, tip=f"{row.resolution} px: clean {percent(row.clean)}")
        for row in ordered
        if row.clean is not None
    ]
    robust = [_point(row, row.resolution or 0) for row in ordered]
    series = [
        Series("clean", CLEAN_STYLE, clean, dashed=True),
        Series(f"{first.threat}, {first.attack}", styles.get(first.name, 0), robust),
    ]
    sizes = sorted({row.resolution or 0 for row in ordered})
    margin = (sizes[-1] - sizes[0]) * 0.06
    ticks = [(size, str(size)) for size in sizes]
    x = Axis(sizes[0] - margin, sizes[-1] + margin, ticks, "test resolution (px)")
    title = f"Accuracy of {first.name} at several test resolutions"
    drawn = chart(key, title, _spoken(ordered), x, fraction_axis("accuracy (%)"), series)
    return figure(drawn, [element("b", first.name), f" on {first.dataset} · n{NBSP}={NBSP}{_sizes(ordered)}"], series)


def tradeoff_charts(rows: Sequence[Measurement], styles: Styles) -> list[Markup]:
    """One chart for each condition under which two models or more were measured: clean against robust accuracy."""
    known = [row for row in rows if row.robust is not None and row.clean is not None]
    groups = grouped(known, lambda row: row.under).values()
    several = [some for some in groups if len({row.name for row in some}) > 1]
    return [_tradeoff_chart(f"tradeoff-{i}", some, styles) for i, some in enumerate(several)]


def _tradeoff_chart(key: str, rows: Sequence[Measurement], styles: Styles) -> Markup:
    series = [Series(row.name, styles.get(row.name, 0), [_point(row, row.clean or 0.0)], line=False) for row in rows]
    first = rows[0]
    x = fraction_axis("clean accuracy (%)", [row.clean for row in rows if row.clean is not None])
    x = Axis(x.low - 0.01, x.high + 0.01, x.ticks, x.label)
    title = f"Clean against robust accuracy under {first.threat} on {first.dataset}"
    drawn = chart(key, title, _spoken(rows), x, fraction_axis("robust accuracy (%)"), series)
    caption = [element("b", first.threat), f" on {first.dataset} · {first.attack} · n{NBSP}={NBSP}{_sizes(rows)}"]
    return figure(drawn, caption, series)


def stem_chart(key: str, pairs: Sequence[tuple[Measurement, Measurement]], styles: Styles) -> Markup:
    """(PatchStem, ConvStem) pairs side by side, one place on the x axis for each threat."""
    ticks = [(float(i), f"{row.norm}\n{radius(row.eps)}") for i, (row, _) in enumerate(pairs)]
    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    series = [_stem_series(one, -0.12, styles), _stem_series(other, 0.12, styles)]
    title = "Robust accuracy of the two stems in each threat model"
    x = Axis(-0.5, len(pairs) - 0.5, ticks)
    spoken = _spoken([row for pair in pairs for row in pair])
    drawn = chart(key, title, spoken, x, fraction_axis("robust accuracy (%)"), series, height=258)
    first = other[0]
    caption = [element("b", f"{first.model}, {first.kind}"), f" on {first.dataset}, {count(first.resolution)} px"]
    return figure(drawn, caption, series)


def _stem_series(rows: Sequence[Measurement], shift: float, styles: Styles) -> Series:
    label = f"{rows[0].stem} ({rows[0].name})"
    return Series(
        label, styles.get(rows[0].name, 0), [_point(row, i + shift) for i, row in enumerate(rows)], line=False
    )


def interval_bar(row: Measurement, style: int) -> Markup | None:
    """A robust accuracy with its interval on a scale from 0 to 100 %, small enough for a table cell."""
    if row.robust is None:
        return None
    low, high = (row.robust if bound is None else bound for bound in (row.low, row.high))
    hue = f"s{style % 8}"
    band = element("rect", x=6 + 108 * low, y=5.5, width=max(1.0, 108 * (high - low)), height=7, rx=3.5)
    return element(
        "svg",
        element("line", x1=6, x2=114, y1=9, y2=9, class_="track"),
        element("g", band, class_=f"band {hue}"),
        element("circle", cx=6 + 108 * row.robust, cy=9, r=4, class_=f"mark {hue}"),
        viewBox="0 0 120 18",
        class_="bar",
        aria_hidden="true",
    )


def _point(row: Measurement, x: float) -> Point:
    said = (
        f"{row.name}: {row.threat}, {row.attack}, n = {count(row.n)}: {figure_words(row)}; clean {percent(row.clean)}"
    )
    return Point(x, row.robust or 0.0, row.low, row.high, said, filled=row.attack == "AutoAttack")


def _sizes(rows: Sequence[Measurement]) -> str:
    return " and ".join(count(n) for n in sorted({row.n or 0 for row in rows}))


def _spoken(rows: Sequence[Measurement]) -> str:
    return "; ".join(f"{row.name}, {row.threat}: {figure_words(row)}" for row in rows[:24])
