"""Writes SVG charts: two axes, lines, marks and error bars. Colours come from the page's style sheet.

A chart is 360 units wide with 13.5-unit text, so that it stays readable when a narrow screen shows it at 335 pixels.
Series differ by colour, shape of mark and dash, never by colour alone. There are no scripts: the exact value of a mark
is in its `<title>`, which browsers show on hover and screen readers read.

`element` escapes every text that is not `Markup` already, so text from recipes and data sets can never become an
element. The drawings are well-formed XML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH = 360
"""Width of a chart, in its own units."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 46
_TEXT = 13.5
_MOST_MARKS = 24
_MOST_POINTS = 400


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with its ticks; a tick's text may have several lines."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""

    def at(self, value: float, start: float, end: float) -> float:
        """Returns the coordinate of `value` if the axis reaches from `start` to `end`."""
        return start + (value - self.low) / ((self.high - self.low) or 1.0) * (end - start)


@dataclass(frozen=True)
class Point:
    """One value of a chart.

    Attributes:
        x, y: on the two axes.
        low, high: ends of its error bar; None: no bar.
        tip: text shown on hover.
        filled: whether its mark is filled.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""
    filled: bool = True


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        label: in the legend.
        style: number of the colour and shape, the same on the whole page.
        line: whether the points are connected; `dashed` likewise.
    """

    label: str
    style: int
    points: Sequence[Point] = field(default_factory=tuple)
    line: bool = True
    dashed: bool = False


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Returns one SVG element.

    Args:
        name: of the element.
        children: its content; text that is not `Markup` is escaped.
        attributes: `class_` becomes `class`, `text_anchor` becomes `text-anchor`; None leaves an attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    content = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{content}</{name}>" if children else f"<{name}{written}/>")


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def chart(
    key: str,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    height: int = 250,
    dodge: float = 0.0,
) -> Markup:
    """Returns an SVG chart.

    Args:
        key: makes the ids of this chart unique on the page.
        title: what is drawn.
        description: the values in words, for screen readers.
        x: the horizontal axis.
        y: the vertical axis.
        series: drawn in this order.
        height: in the chart's units.
        dodge: units by which each series is shifted to the right of the one before, so that error bars do not overlap.
    """
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    body = [_grid(x, y, right, bottom)]
    middle = (len(series) - 1) / 2
    body += [_series(one, x, y, right, bottom, (i - middle) * dodge) for i, one in enumerate(series)]
    return element(
        "svg",
        element("title", title, id=f"{key}-t"),
        element("desc", description, id=f"{key}-d"),
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{key}-t {key}-d",
        font_size=_TEXT,
        class_="chart",
    )


def mark(style: int, x: float, y: float, filled: bool = True, size: float = 4.5) -> Markup:
    """Returns the mark of a style: circle, square, diamond, triangle; the second four are other colours or turned."""
    name = f"s{style % 8} {'mark' if filled else 'mark hollow'}"
    shape = style % 4
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size, class_=name)
    if shape == 1:
        side = 2 * size * 0.9
        return element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=name)
    reach = size * 1.3
    sign = 1 if style % 8 < 4 else -1
    corners = [(0, -reach), (reach, 0), (0, reach), (-reach, 0)]
    if shape == 3:
        corners = [(0, -reach * sign), (reach, reach * 0.8 * sign), (-reach, reach * 0.8 * sign)]
    return element("polygon", points=" ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in corners), class_=name)


def key_mark(style: int, line: bool = True, dashed: bool = False) -> Markup:
    """Returns the sample of a style for a legend."""
    stroke = element("line", x1=0, x2=26, y1=8, y2=8, class_=_line_class(style, dashed)) if line else Markup("")
    return element("svg", stroke, mark(style, 13, 8), viewBox="0 0 26 16", class_="key", aria_hidden="true")


def interval_bar(value: float, low: float, high: float, style: int) -> Markup:
    """Returns a share with its interval on a scale from 0 to 100 %, small enough for a table cell."""
    hue = f"s{style % 8}"
    band = element("rect", x=6 + 108 * low, y=5.5, width=max(1.0, 108 * (high - low)), height=7, rx=3.5)
    return element(
        "svg",
        element("line", x1=6, x2=114, y1=9, y2=9, class_="track"),
        element("g", band, class_=f"band {hue}"),
        element("circle", cx=6 + 108 * value, cy=9, r=4, class_=f"mark {hue}"),
        viewBox="0 0 120 18",
        class_="bar",
        aria_hidden="true",
    )


def fraction_axis(label: str, values: Sequence[float] = (0.0, 1.0)) -> Axis:
    """Returns an axis of accuracies in per cent: 0 to 100, or a part of it if all `values` are close together."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low > 0.35 or not values:
        low, high = 0.0, 1.0
    else:
        low, high = max(0.0, math.floor(low * 10 - 0.5) / 10), min(1.0, math.ceil(high * 10 + 0.5) / 10)
    step = 0.2 if high - low > 0.6 else 0.1
    ticks = [(low + i * step, f"{100 * (low + i * step):.0f}") for i in range(int((high - low) / step + 1.001))]
    return Axis(low, high, ticks, label)


def number_axis(label: str, values: Sequence[float], start: float | None = None, whole: bool = False) -> Axis:
    """Returns an axis with round ticks around `values`.

    Args:
        label: of the axis.
        values: that must be on it.
        start: its lower end; None: below the smallest value.
        whole: ticks at whole numbers only.
    """
    low = min(values, default=0.0) if start is None else start
    high = max(values, default=1.0)
    if high <= low:
        low, high = (low, low + 1) if start is not None else (low - 0.5, high + 0.5)
    step = _round_step((high - low) / 4)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.floor(low / step + 1e-9) if start is None else low / step
    last = math.floor(high / step + 1e-9) if whole else math.ceil(high / step - 1e-9)
    ticks = [((first + i) * step, f"{(first + i) * step:.6g}") for i in range(int(last - first + 1.001))]
    return Axis(ticks[0][0], max(ticks[-1][0], high), ticks, label)


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * (1 - 1e-9))


def _grid(x: Axis, y: Axis, right: float, bottom: float) -> Markup:
    lines = []
    for value, text in y.ticks:
        at = y.at(value, bottom, _TOP)
        lines.append(element("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="grid"))
        lines.append(element("text", text, x=_LEFT - 8, y=at + 4.5, text_anchor="end"))
    for value, text in x.ticks:
        at = x.at(value, _LEFT, right)
        lines.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        lines.append(_tick_text(text, at, bottom + 18, right))
    lines.append(element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    middle = (bottom + _TOP) / 2
    lines.append(element("text", x.label, x=(_LEFT + right) / 2, y=bottom + 39, text_anchor="middle", class_="label"))
    turned = f"rotate(-90 14 {middle:.1f})"
    lines.append(element("text", y.label, x=14, y=middle, transform=turned, text_anchor="middle", class_="label"))
    return Markup("").join(lines)


def _tick_text(text: str, at: float, y: float, right: float) -> Markup:
    rows = [element("tspan", row, x=at, dy=0 if i == 0 else 15) for i, row in enumerate(text.split("\n"))]
    at_the_edge = at >= right - 8 and len(text) > 3
    return element("text", *rows, x=at, y=y, text_anchor="end" if at_the_edge else "middle")


def _series(series: Series, x: Axis, y: Axis, right: float, bottom: float, shift: float) -> Markup:
    points = _thinned(series.points)
    placed = [(x.at(point.x, _LEFT, right) + shift, y.at(point.y, bottom, _TOP), point) for point in points]
    drawn: list[Markup] = []
    for across, _, point in placed:
        if point.low is not None and point.high is not None:
            drawn.append(
                _error_bar(series.style, across, y.at(point.low, bottom, _TOP), y.at(point.high, bottom, _TOP))
            )
    if series.line and len(placed) > 1:
        path = " ".join(f"{across:.2f},{up:.2f}" for across, up, _ in placed)
        drawn.append(element("polyline", points=path, class_=_line_class(series.style, series.dashed)))
    if len(placed) <= _MOST_MARKS:
        for across, up, point in placed:
            tip = element("title", point.tip) if point.tip else Markup("")
            drawn.append(element("g", tip, mark(series.style, across, up, point.filled)))
    return element("g", *drawn)


def _error_bar(style: int, at: float, low: float, high: float) -> Markup:
    ends = [element("line", x1=at - 4, x2=at + 4, y1=end, y2=end) for end in (low, high)]
    return element("g", element("line", x1=at, x2=at, y1=low, y2=high), *ends, class_=f"whisker s{style % 8}")


def _line_class(style: int, dashed: bool) -> str:
    return f"line s{style % 8}{' dashed' if dashed else ''}"


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = math.ceil(len(points) / _MOST_POINTS) or 1
    return points if step == 1 else [*points[:-1:step], points[-1]]
