"""The table in the terminal: within 100 columns, every figure with n and interval; the package is light to import."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from pipeline.report import terminal_table


def printed(rows, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(rows))
    return console.export_text().splitlines()


def test_it_fits_and_shows_n_and_interval(stages):
    rows = [row for stage in stages for row in stage.rows]
    lines = printed(rows)
    assert max(map(len, lines)) <= 100
    (headline,) = [line for line in lines if "radius" in line or ("69.0" in line and "AutoAttack" in line)][1:2]
    assert headline.split()[-4:] == ["100", "92.0", "69.0", "59.4–77.2"]
    assert sum("–" in line for line in lines) == len(rows)
    assert not any("…" in line for line in lines)


def test_markup_in_names_is_shown_as_it_is(stages):
    row = {**stages[6].rows[0], "name": "[red]a[/red][/]", "attack": "[bold]"}
    text = "\n".join(printed([row]))
    assert "[red]a[/red][/]" in text
    assert "[bold]" in text


def test_no_rows_and_empty_rows():
    assert printed([])
    assert printed([{}])


def test_importing_the_report_loads_nothing_heavy():
    code = "import sys, pipeline.report; print([m for m in ('rich','matplotlib','numpy','yaml','kfp','mlflow','torch','pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
