"""Results for the terminal: the table, the worst cases, and in a few lines what the table has no room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from components.report.data import grouped
from components.result_rows import ResultRow, WorstCaseRow
from components.wording import NOT_RECORDED, count, interval, listed, percent

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(rows: Sequence[ResultRow]) -> Table:
    """The results as a table for the terminal, at most 100 columns wide."""
    from rich.text import Text

    table = _table(("data", "threat", "attack"), first="model")
    for stage, some in grouped(rows, lambda row: row.stage).items():
        for i, row in enumerate(some):
            head = Text(stage, style="bold") if i == 0 else Text(row.model_title if i == 1 else "", style="dim")
            if len(some) == 1:
                head.append(f"\n{row.model_title}", style="dim not bold")
            cells = [row.data_title, row.threat, row.attack, *_figures(row)]
            table.add_row(head, *(Text(cell) for cell in cells), end_section=i == len(some) - 1)
    return table


def terminal_worst_cases(rows: Sequence[WorstCaseRow]) -> Table | None:
    """The worst cases over the norms, each with its threats; None if there are none."""
    from rich.text import Text

    if not rows:
        return None
    table = _table(("worst case of", "data", "over", "attack"))
    for row in rows:
        over = ", ".join(threat.threat for threat in row.threats)
        table.add_row(*(Text(cell) for cell in (row.stage, row.data_title, over, row.attack, *_figures(row))))
    return table


def _table(titles: Sequence[str], first: str = "") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    if first:
        table.add_column(first, max_width=30)
    for title in titles:
        table.add_column(title, overflow="fold")
    for title in ("n", "clean", "robust", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _figures(row: ResultRow | WorstCaseRow) -> list[str]:
    shares = [percent(value).removesuffix("%").rstrip() for value in (row.clean_accuracy, row.robust_accuracy)]
    return [count(row.n), *shares, interval(*row.interval)]


def terminal_conditions(rows: Sequence[ResultRow]) -> list[str]:
    """Version of the attack, precision, batch size, images, and the evaluations' reservations, in a few lines."""
    if not rows:
        return []
    details = [row.details for row in rows]
    libraries, precisions = (
        _distinct(one.attack_library for one in details),
        _distinct(one.precision for one in details),
    )
    batches, splits = _distinct(one.batch_size for one in details), _distinct(one.split for one in details)
    lines = [f"Attacks: {libraries}, {precisions}, batches of {batches}."]
    for title, some in grouped(rows, lambda row: row.image_set).items():
        lines.append(f"Images: of the split {splits}, {title or NOT_RECORDED}: {_images(some)}.")
    notes = [(note, f"{row.stage}, {row.threat}") for row in rows for note in row.details.notes]
    groups = grouped(notes, lambda pair: pair[0]).items()
    return lines + [f"{note[:1].upper()}{note[1:]} ({'; '.join(where for _, where in some)})." for note, some in groups]


def _images(rows: Sequence[ResultRow]) -> str:
    """The sets of images by the beginning of their digests: equal digests, equal images."""
    sets = grouped(rows, lambda row: row.details.images_digest[:8])
    return listed([f"{key or NOT_RECORDED} ({_stages(some)})" for key, some in sets.items()])


def _stages(rows: Iterable[ResultRow]) -> str:
    return ", ".join(dict.fromkeys(row.stage for row in rows))


def _distinct(values: Iterable[object]) -> str:
    return listed(list(dict.fromkeys(map(str, values)))) or NOT_RECORDED
