"""Shows a run while it is under way: in a terminal one line per stage, redrawn in place; else one line per event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.recipe import Recipe

_STYLES = {
    "reused": "cyan",
    "complete": "green",
    "running": "yellow",
    "failed": "bold red",
    "waiting": "magenta",
    "stopped": "yellow",
}


class Display:
    """Shows every stage's last live report.

    Args:
        console: where to; in a terminal the lines are redrawn in place, elsewhere each change of state is one line.
    """

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._recipe, self._console = recipe, console
        self._live: Live | None = None
        self._states: dict[str, str] = {}
        self._num_printed: dict[str, int] = {}

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Keeps the live lines up while the block runs."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, refresh_per_second=8, transient=False) as self._live:
            yield self

    def update(self, reports: dict[str, dict[str, Any]]) -> None:
        """Shows the newest reports, by stage name."""
        for name, report in reports.items():
            self._print_messages(name, report.get("messages", []))
        if self._live is not None:
            self._live.update(self._table(reports))
            return
        for name, report in reports.items():
            self._print_change(name, report)

    def _print_messages(self, name: str, messages: list[str]) -> None:
        """Prints a stage's messages since the last call; in a terminal above the live lines."""
        for text in messages[self._num_printed.get(name, 0) :]:
            style = "yellow" if text.startswith("warning:") else ""
            self._console.print(Text(f"{name}: {text}", style=style))
        self._num_printed[name] = len(messages)

    def _print_change(self, name: str, report: dict[str, Any]) -> None:
        state = str(report.get("state", ""))
        if self._states.get(name) == state or (state == "running" and name in self._states):
            return
        self._states[name] = state
        if state == "running":
            self._console.print(f"{name}: started", highlight=False)
        else:
            self._console.print(f"{name}: {describe(report)}", highlight=False)

    def _table(self, reports: dict[str, dict[str, Any]]) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True, min_width=max(len(name) for name in self._recipe.stages))
        table.add_column(no_wrap=True, min_width=9)
        # What a narrow terminal cannot show in one line goes on in the next.
        table.add_column(ratio=1)
        for name in self._recipe.stages:
            report = reports.get(name, {})
            state = str(report.get("state", "")) or "·"
            style = _STYLES.get(state, "dim")
            table.add_row(Text(name, style="" if report else "dim"), Text(_word(state), style=style), describe(report))
        return Group(table)


def _word(state: str) -> str:
    return {"complete": "done"}.get(state, state)


def describe(report: dict[str, Any]) -> str:
    """Returns one report as text: phase, share, speed, time left; or the reused run; or the cause of a failure."""
    state = report.get("state")
    if state == "reused":
        origin = str(report.get("origin") or "")
        return f"reused from run {str(report.get('run_id'))[:8]}" + (f" of pipeline run {origin[:8]}" if origin else "")
    if state == "failed":
        return f"failed: {report.get('error', '')}"
    if state == "complete":
        return f"done, run {str(report.get('run_id'))[:8]}"
    if state != "running":
        return str(report.get("note") or state or "")
    return _working(report)


def _working(report: dict[str, Any]) -> str:
    done, total, rate = report.get("done", 0), report.get("total", 0), report.get("rate", 0.0)
    parts = [str(report.get("phase", ""))]
    if total:
        parts.append(f"{100 * done / total:3.0f} %")
    if rate:
        parts.append(f"{rate:,.0f} {report.get('unit', '')}/s")
        if total > done:
            parts.append(f"{_clock((total - done) / rate)} left")
    if report.get("note"):
        parts.append(str(report["note"]))
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
