"""What a person sees while a run is under way, in narrow and wide terminals."""

import io

import pytest
from rich.console import Console

from components.store.progress import Progress, read_messages
from pipeline.display import Display
from pipeline.recipe import load

NOTE = "epoch 3/12, loss 1.234, attack +0.52, flips 31%, gradient 1.2, waiting 2%, 12.3 GiB, 0.25 TFLOP/s, 41% of peak"
TRAINING = {
    "state": "running",
    "phase": "train",
    "done": 300,
    "total": 3000,
    "rate": 310.0,
    "unit": "images",
    "note": NOTE,
}


def _shown(width, reports, terminal=True):
    recipe = load("quickstart")
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    display = Display(recipe, console)
    with display.shown():
        display.update(reports)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_stage_keeps_its_name_and_its_state(width):
    text = _shown(width, {"adversarial-patch": TRAINING, "digits": {"state": "complete", "run_id": "0123456789"}})
    lines = text.splitlines()
    for name in load("quickstart").stages:
        assert any(name in line for line in lines), name
    assert any("adversarial-patch" in line and "running" in line and "10 %" in line for line in lines)
    assert any("digits" in line and "done" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_is_cut_off(width):
    words = " ".join(_shown(width, {"adversarial": TRAINING}).split())
    for figure in ("310 images/s", "left", "loss 1.234", "flips 31%", "41% of peak"):
        assert figure in words, figure


def test_what_a_stage_says_is_passed_on_once(tmp_path):
    progress = Progress("adversarial", tmp_path)
    progress.info("warning: training collapsed")
    progress.report(phase="train", done=1, total=10)
    recipe, out = load("quickstart"), io.StringIO()
    display = Display(recipe, Console(file=out, width=100))
    for _ in range(2):
        display.update({"adversarial": {**TRAINING, "messages": read_messages(progress.path)}})
    assert out.getvalue().count("adversarial: warning: training collapsed") == 1
    progress.info("continuing")
    display.update({"adversarial": {**TRAINING, "messages": read_messages(progress.path)}})
    assert out.getvalue().count("adversarial: continuing") == 1


def test_a_line_that_is_being_written_waits(tmp_path):
    progress = Progress("digits", tmp_path)
    progress.info("whole")
    with (tmp_path / "digits.messages").open("a") as file:
        file.write('"half')
    assert read_messages(progress.path) == ["whole"]
