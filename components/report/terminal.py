"""The figures for the terminal: the table, the worst cases, and what holds for all of them in a line or two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.report.figures import NOT_RECORDED, count, interval, listed, percent
from components.report.measurement import Measurement, grouped, threat_words

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `results.json` as a table for the terminal, at most 100 columns wide."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    drawn.add_column("model", max_width=30)
    for title in ("data", "threat", "attack"):
        drawn.add_column(title, overflow="fold")
    for title in ("n", "clean", "robust", "95 %"):
        drawn.add_column(title, justify="right", no_wrap=True)
    figures = [Measurement.from_row(row) for row in rows]
    for name, some in grouped(figures, lambda row: row.name).items():
        for i, row in enumerate(some):
            head = Text(name, style="bold") if i == 0 else Text(row.model_title if i == 1 else "", style="dim")
            if len(some) == 1:
                head.append(f"\n{row.model_title}", style="dim not bold")
            drawn.add_row(head, *(Text(cell) for cell in _terminal_cells(row)), end_section=i == len(some) - 1)
    return drawn


def _terminal_cells(row: Measurement) -> list[str]:
    place = f"{row.dataset} {row.resolution}" if row.resolution else row.dataset
    shares = [percent(value).removesuffix("%").rstrip() for value in (row.clean, row.robust)]
    return [place, row.threat, row.attack, count(row.n), *shares, interval(row.low, row.high)]


def terminal_worst_cases(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The worst cases over the norms, each with the threats it is taken over; None where there are none."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return None
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for title in ("worst case of", "data", "over", "attack"):
        drawn.add_column(title, overflow="fold")
    for title in ("n", "clean", "robust", "95 %"):
        drawn.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        figure = Measurement.from_row(row)
        cells = _terminal_cells(figure)
        over = threat_words(row.get("threats", row.get("norms"))).replace(" · ", ", ")
        drawn.add_row(*(Text(cell) for cell in (figure.name, cells[0], over, *cells[2:])))
    return drawn


def terminal_conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table has no room for: version of the attack, precision, batch size, which images, and reservations."""
    details = [row.get("details") or {} for row in rows]
    if not any(details):
        return []
    precision, seeds = _several(details, "precision"), _several(details, "seed")
    said = [
        f"Attacks: {_several(details, 'attack_library')}, {precision}, batches of {_several(details, 'batch_size')}.",
        f"Images: of the split {_several(details, 'split')}, drawn with seed {seeds}: {_images(rows)}.",
    ]
    notes = [(note, f"{row.name}, {row.threat}") for row in map(Measurement.from_row, rows) for note in row.notes]
    told = grouped(notes, lambda pair: pair[0])
    return said + [f"{_capital(note)} ({'; '.join(where for _, where in some)})." for note, some in told.items()]


def _images(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sets of images by the beginning of their digests: equal digests, equal images."""
    pairs = [(str((row.get("details") or {}).get("images_digest", ""))[:8], row) for row in rows]
    sets = grouped(pairs, lambda pair: pair[0])
    return listed([f"{key or NOT_RECORDED} ({_whose(row for _, row in some)})" for key, some in sets.items()])


def _whose(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(row.get("name")) for row in rows))


def _several(details: Sequence[Mapping[str, Any]], key: str) -> str:
    known = dict.fromkeys(str(one[key]) for one in details if one.get(key) is not None)
    return listed(list(known)) or NOT_RECORDED


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
