"""The table in the terminal: within 100 columns, every figure with n and interval; the package is light to import."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from components.report.terminal import terminal_conditions, terminal_table, terminal_worst_cases
from components.result_rows import ResultRow
from tests.result_documents import row_document


def printed(rows, width: int = 100, drawn=terminal_table) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(drawn(rows))
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
    row = stages[6].rows[0].model_copy(update={"stage": "[red]a[/red][/]", "attack": "[bold]"})
    text = "\n".join(printed([row]))
    assert "[red]a[/red][/]" in text
    assert "[bold]" in text


def test_a_table_without_rows_has_its_headings():
    assert "robust" in "".join(printed([]))


def test_importing_the_report_loads_nothing_heavy():
    code = "import sys, components.report.terminal; print([m for m in ('rich','matplotlib','numpy','yaml','kfp','mlflow','torch','jinja2','markupsafe') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_worst_cases_are_shown_with_the_threats_they_are_taken_over(stages):
    rows = [row for stage in stages for row in stage.worst_cases]
    text = "\n".join(printed(rows, 120, terminal_worst_cases)).replace("\N{NO-BREAK SPACE}", " ")
    assert "adversarial-patch" in text
    assert text.count("Linf 0.15, L2 1, L1 10") == len(rows)
    assert "38.0" in text
    assert terminal_worst_cases([]) is None


def measured(name: str, **details):
    known = {"attack_library": "lib 1", "images_digest": "abcdef0123"}
    return ResultRow.model_validate(row_document(stage=name, norm="L1", eps=20.0, details={**known, **details}))


def test_the_conditions_that_the_table_has_no_room_for_are_below_it():
    note = "targets capped at classes - 1 = 3: APGD-T 3 instead of 9"
    rows = [measured("a"), measured("b", images_digest="9876543210", targets_note=note, batch_size=32)]
    assert terminal_conditions(rows) == [
        "Attacks: lib 1, fp32, batches of 64 and 32.",
        "Images: of the split val, drawn with seed 0: abcdef01 (a) and 98765432 (b).",
        "Targets capped at classes - 1 = 3: APGD-T 3 instead of 9 (b, L1 20).",
    ]
    assert terminal_conditions([]) == []


def test_a_list_of_images_is_named_beside_its_figures_and_below_the_table():
    drawn, listed = measured("a"), measured("b").model_copy(update={"image_set": "RobustBench"})
    text = " ".join(" ".join(printed([drawn, listed])).split())
    assert text.count("RobustBench") == 1
    assert listed.data_title == "imagenet 224, RobustBench"
    assert drawn.data_title == "imagenet 224"
    assert terminal_conditions([drawn, listed])[1:] == [
        "Images: of the split val, drawn with seed 0: abcdef01 (a).",
        "Images: of the split val, RobustBench: abcdef01 (b).",
    ]


def test_enlarged_images_are_mentioned_below_the_table():
    note = "5 of the 8 images are enlarged for 320 px"
    assert terminal_conditions([measured("a", resolution_note=note)])[-1] == f"{note} (a, L1 20)."
