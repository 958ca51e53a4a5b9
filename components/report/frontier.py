"""Clean against robust accuracy of several models: which points none beats in both, and which ones one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.report.charts import Styles, figure
from components.report.compare import figure_words
from components.report.figures import NBSP, count, percent
from components.report.markup import Markup, element
from components.report.measurement import Measurement, grouped
from components.report.plots import Axis, Point, Series, chart, fraction_axis

_FRONT_STYLE = 7


@dataclass(frozen=True)
class Frontier:
    """The models measured under one condition.

    Attributes:
        rows: all of them, from the lowest clean accuracy to the highest.
        dominated: name of a model -> those at least as good in both accuracies and better in one.
    """

    rows: Sequence[Measurement]
    dominated: Mapping[str, Sequence[str]]

    @property
    def front(self) -> list[Measurement]:
        """The models that none dominates, from the lowest clean accuracy to the highest."""
        return [row for row in self.rows if row.name not in self.dominated]


def frontiers(rows: Sequence[Measurement]) -> list[Frontier]:
    """One for each condition under which two models or more were measured."""
    known = [row for row in rows if row.robust is not None and row.clean is not None]
    groups = grouped(known, lambda row: row.under).values()
    return [frontier(some) for some in groups if len({row.name for row in some}) > 1]


def frontier(rows: Sequence[Measurement]) -> Frontier:
    """Sorts the points of one condition into those on the frontier and those that are dominated.

    Equal points do not dominate each other. The comparison is of the measured shares; what of it the images can carry
    is said by the paired differences.
    """
    ordered = sorted(rows, key=lambda row: (row.clean or 0.0, row.robust or 0.0))
    beaten = {row.name: [other.name for other in ordered if _dominates(other, row)] for row in ordered}
    return Frontier(ordered, {name: others for name, others in beaten.items() if others})


def _dominates(one: Measurement, other: Measurement) -> bool:
    ours, theirs = (one.clean or 0.0, one.robust or 0.0), (other.clean or 0.0, other.robust or 0.0)
    return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]


def frontier_figure(key: str, found: Frontier, styles: Styles) -> Markup:
    """The points, the frontier as a line through those that none dominates, dominated ones hollow."""
    first = found.rows[0]
    line = Series("frontier", _FRONT_STYLE, [_point(row) for row in found.front], dashed=True)
    drawn = [_series(row, styles, row.name in found.dominated) for row in found.rows]
    x = fraction_axis("clean accuracy (%)", [row.clean for row in found.rows if row.clean is not None])
    x = Axis(x.low - 0.01, x.high + 0.01, x.ticks, x.label)
    title = f"Clean against robust accuracy under {first.threat} on {first.dataset}"
    spoken = "; ".join(f"{row.name}: clean {percent(row.clean)}, {figure_words(row)}" for row in found.rows[:24])
    plot = chart(key, title, spoken, x, fraction_axis("robust accuracy (%)"), [line, *drawn])
    caption = [element("b", first.threat), f" on {first.dataset} · {first.attack} · n{NBSP}={NBSP}{count(first.n)}"]
    return figure(plot, caption, drawn)


def _series(row: Measurement, styles: Styles, dominated: bool) -> Series:
    label = f"{row.name} (dominated)" if dominated else row.name
    return Series(label, styles.get(row.name, 0), [_point(row, filled=not dominated)], line=False)


def _point(row: Measurement, filled: bool = True) -> Point:
    said = f"{row.name}: clean {percent(row.clean)}, robust {figure_words(row)}"
    return Point(row.clean or 0.0, row.robust or 0.0, row.low, row.high, said, filled)


def frontier_words(found: Frontier) -> list[str]:
    """One sentence that names the frontier, and one for each dominated model."""
    front = ", ".join(f"“{row.name}”" for row in found.front)
    said = [f"On the frontier, dominated by none: {front}."]
    for name, others in found.dominated.items():
        by = ", ".join(f"“{other}”" for other in others)
        said.append(f"Dominated: “{name}”, by {by} (at least as good in both accuracies, better in one).")
    return said if found.dominated else [*said, "No model is dominated."]
