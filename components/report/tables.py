"""The figures as tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.report.charts import Styles, interval_bar
from components.report.compare import Comparison
from components.report.figures import NBSP, count, interval, listed, percent
from components.report.markup import Content, Markup, element, join
from components.report.measurement import Measurement, grouped
from components.report.paper import PUBLISHED, AgainstPaper, Published
from components.report.plots import key_mark


@dataclass(frozen=True)
class Column:
    """A column's heading and its class: "num" aligns figures to the right."""

    title: str
    class_: str | None = None


def table(columns: Sequence[Column], rows: Iterable[Sequence[Content]], class_: str = "") -> Markup:
    """A table in a container that scrolls by itself; narrow screens show each row as a card with the headings."""
    return _framed(columns, element("tbody", [_row(columns, row) for row in rows]), class_)


_MAIN = (
    Column("threat", "lead"),
    Column("robust accuracy", "num strong"),
    Column("95 % interval", "range"),
    Column("attack", "kept"),
    Column("clean", "num"),
    Column("n", "num"),
    Column("px", "num"),
    Column("precision"),
)


def main_table(rows: Sequence[Measurement], styles: Styles) -> Markup:
    """Every robust accuracy with its conditions, the rows of one model on one data set under one heading."""
    bodies = []
    for (name, dataset), some in grouped(rows, lambda row: (row.name, row.dataset)).items():
        style = styles.get(name, 0)
        sources = listed(list(dict.fromkeys(row.source for row in some if row.source)))
        where = f" · measured by {sources}" if sources else ""
        heading = [key_mark(style, line=False), element("b", name), f" {some[0].model_title} · {dataset}{where}"]
        group = element("tr", element("th", heading, colspan=len(_MAIN), scope="rowgroup"), class_="group")
        bodies.append(element("tbody", group, [_row(_MAIN, _main_cells(row, style)) for row in some]))
    return _framed(_MAIN, bodies, "cards")


def _main_cells(row: Measurement, style: int) -> list[Content]:
    version = element("small", row.version)
    bounds = element("span", interval(row.low, row.high), class_="bounds")
    return [
        row.threat,
        percent(row.robust),
        [interval_bar(row, style), bounds],
        [row.attack, " ", version],
        percent(row.clean),
        count(row.n),
        count(row.resolution),
        row.precision,
    ]


def union_table(rows: Sequence[tuple[Measurement, str]], styles: Styles) -> Markup:
    """The worst case over the norms: an image counts as right only when it withstands every threat."""
    columns = (
        Column("model", "lead"),
        Column("worst case", "num strong"),
        Column("95 % interval", "range"),
        Column("clean", "num"),
        Column("over the threats", "wide"),
        Column("attack", "wide"),
        Column("n", "num"),
    )
    cells = []
    for row, threats in rows:
        style = styles.get(row.name, 0)
        bounds = element("span", interval(row.low, row.high), class_="bounds")
        model = [element("b", row.name), " ", _under(f"{row.model_title}, {row.dataset}")]
        bar = [interval_bar(row, style), bounds]
        cells.append([model, percent(row.robust), bar, percent(row.clean), threats, row.attack, count(row.n)])
    return table(columns, cells, "cards")


def comparison_table(comparisons: Sequence[Comparison], first: str, second: str) -> Markup:
    """Pairs of figures under equal conditions and what they show; `first` and `second` head their columns."""
    columns = (
        Column("threat", "lead"),
        Column(first, "num wide"),
        Column(second, "num wide"),
        Column("what it shows", "wide plain"),
    )
    return table(columns, [_comparison_cells(item) for item in comparisons], "cards")


def _comparison_cells(item: Comparison) -> list[Content]:
    clear = item.outcome in ("higher", "lower")
    words = element("span", item.words, class_="clear" if clear else "apart")
    threat = [item.first.threat, " ", _under(f"{item.first.attack}, n{NBSP}={NBSP}{_sizes(item)}")]
    return [threat, _cell(item.first), _cell(item.second), words]


def paper_table(found: Sequence[AgainstPaper]) -> Markup:
    """Our figures beside the published ones of the same network."""
    columns = (
        Column("model", "lead"),
        Column("threat"),
        Column("here", "num"),
        Column("published", "num"),
        Column("what the difference is worth", "wide plain"),
        Column("source"),
    )
    cells = [
        [
            [element("b", item.published.title), " ", _under(f"{item.ours.name}, {item.ours.dataset}")],
            item.ours.threat,
            _cell(item.ours),
            percent(item.published.robust),
            element("span", item.words, class_=None if item.comparable else "apart"),
            item.published.source,
        ]
        for item in found
    ]
    return table(columns, cells, "cards")


def published_table() -> Markup:
    """All published figures, for orientation."""
    columns = (
        Column("model", "lead"),
        Column("threat"),
        Column("px", "num"),
        Column("epochs", "num"),
        Column("clean", "num"),
        Column("robust", "num"),
        Column("source"),
    )
    return table(columns, [_published_cells(one) for one in PUBLISHED])


def _published_cells(one: Published) -> list[Content]:
    threat = {4: "4/255", 8: "8/255"}.get(round(one.eps * 255), f"{one.eps:g}")
    figures = [percent(one.clean), percent(one.robust)]
    return [one.title, f"{one.norm} {threat}", count(one.resolution), one.epochs, *figures, one.source]


def _framed(columns: Sequence[Column], bodies: Content, class_: str) -> Markup:
    head = element(
        "thead", element("tr", [element("th", one.title, class_=one.class_, scope="col") for one in columns])
    )
    return element("div", element("table", head, bodies, class_=class_ or None), class_="scroll", tabindex=0)


def _row(columns: Sequence[Column], cells: Sequence[Content]) -> Markup:
    pairs = zip(columns, cells, strict=True)
    return element("tr", [element("td", cell, class_=one.class_, data_label=one.title) for one, cell in pairs])


def _under(text: str) -> Markup:
    """Small print on a line of its own."""
    return element("small", text, class_="under")


def _cell(row: Measurement) -> Markup:
    bounds = element("small", f"[{interval(row.low, row.high)}]", class_="bounds")
    return join(element("b", percent(row.robust)), " ", bounds)


def _sizes(item: Comparison) -> str:
    return " / ".join(dict.fromkeys(count(row.n) for row in (item.first, item.second)))
