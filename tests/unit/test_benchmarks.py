"""The benchmarks: that they run and print the agreed keys, count right, and compare equal things. No time is judged."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.adversarial_step import ATTACKS, CLASSES, EPS, TINY, CaseSteps, flop_ratios
from benchmarks.counted_flops import convolution_backward_flops, step_flops
from benchmarks.plain_step import Levers, PlainStep
from benchmarks.rows import row
from benchmarks.subprocess_timer import subprocess_timer
from benchmarks.timing import Times, side_by_side
from components.attack.apgd import apgd

ROOT = Path(__file__).resolve().parents[2]
ALL = Levers(True, True, True, True, True, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["adversarial_step", "data_loader", "train_overhead", "second_run"])
def test_quick_run_prints_the_agreed_keys(script):
    command = [sys.executable, f"benchmarks/{script}.py", "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert rows
    for one in rows:
        assert set(one) == {"name", "goal", "measured", "unit", "met"}
        assert (one["met"] is None) == (one["goal"] is None or one["measured"] is None)
    assert len({one["name"] for one in rows}) == len(rows)


def test_flops_of_a_step_are_those_of_its_forwards_and_backwards():
    """8 forwards to 3, and 7 to 3 in the fast form; a clean step never computes the images' gradient."""
    ratios = flop_ratios("convnext_tiny", 224)
    assert ratios["clean"] == 1
    assert 2.66 <= ratios["best"] <= 2.68
    assert 2.32 <= ratios["last"] <= 2.34


def test_grouped_convolutions_are_counted_as_what_they_are():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Flatten(), nn.Linear(96, 5)
        )

    first, grouped, last = 2 * 16 * 3 * 6, 2 * 16 * 6 * 9, 2 * 96 * 5
    clean = step_flops(build, None, resolution=4, classes=5)
    assert clean == 3 * (first + grouped + last) - first
    assert step_flops(build, ATTACKS["best"], resolution=4, classes=5) == clean + 5 * (first + grouped + last)
    shapes = torch.empty(2, 6, 4, 4), torch.empty(2, 6, 4, 4), torch.empty(6, 1, 3, 3)
    settings = [6], [1, 1], [1, 1], [1, 1], False, [0, 0], 6
    assert convolution_backward_flops(*shapes, *settings, [False, True, True]) == 2 * grouped


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(72, 4)).double()
    images, targets = torch.rand(16, 3, 8, 8).double(), torch.softmax(torch.randn(16, 4), 1).double()
    return model, images, targets


@pytest.mark.parametrize("levers", [Levers(input_gradient=False), Levers(), ALL], ids=["plain", "released", "all"])
def test_plain_attack_finds_what_ours_finds(setting, levers):
    model, images, targets = setting
    plain = PlainStep(model, images, targets, eps=0.1, lr=1e-3, levers=levers)
    found = apgd(model, images, targets, norm="Linf", eps=0.1, steps=2)
    torch.testing.assert_close(plain.attack(), found.x_adv, rtol=0, atol=1e-12)
    assert not torch.equal(found.x_adv, images)


def test_plain_step_computes_what_ours_computes():
    """Losses of three steps on convnext_micro, each after the updates before it."""
    steps = CaseSteps(TINY, "cpu")
    one, other = steps.ours(ATTACKS["best"]), steps.plain(Levers())
    losses = [(float(one()), float(other())) for _ in range(3)]
    for ours, plain in losses:
        assert ours == pytest.approx(plain, rel=1e-3)
    assert steps.targets.shape == (TINY.batch, CLASSES)
    assert EPS == 4 / 255


def test_levers_leave_the_result(setting):
    model, images, targets = setting
    weights = []
    for levers in (Levers(), ALL):
        plain = PlainStep(model, images, targets, eps=0.1, lr=1e-3, levers=levers)
        for _ in range(3):
            plain()
        weights.append((plain.model.state_dict(), plain.average.state_dict()))
    for once, again in zip(*weights):
        for name, tensor in once.items():
            torch.testing.assert_close(tensor, again[name], rtol=0, atol=1e-9)


def test_rows_say_whether_a_goal_is_met():
    assert row("a", 1.5, "ratio", least=1.3)["met"] is True
    assert row("a", 1.5, "ratio", most=1.3)["met"] is False
    assert row("a", 2.667, "ratio", least=2.66, most=2.68) == {
        "name": "a",
        "goal": 2.67,
        "measured": 2.667,
        "unit": "ratio",
        "met": True,
    }
    assert row("a", None, "ratio", least=1.3)["met"] is None
    assert row("a", 1.0, "ratio")["goal"] is None


def _pieces(folder):
    return {name: lambda name=name: (folder / name).write_text(str(os.getpid())) for name in ("a", "b")}


@pytest.mark.slow
def test_pieces_in_a_subprocess_run_in_one_other_process_and_take_their_turns(tmp_path):
    here = []
    with subprocess_timer(functools.partial(_pieces, tmp_path)) as beside:
        times = side_by_side(
            {"here": lambda: here.append(len(list(tmp_path.iterdir())))}, rounds=2, in_subprocess=beside
        )
    assert here == [0, 2, 2], "the other process had its turns in between"
    others = {(tmp_path / name).read_text() for name in ("a", "b")}
    assert len(others) == 1
    assert others != {str(os.getpid())}
    assert {name: len(spent) for name, spent in times.seconds.items()} == {"here": 2, "a": 2, "b": 2}


def test_ratios_are_of_the_same_round():
    times = Times({"a": [1.0, 20.0, 3.0], "b": [2.0, 40.0, 3.0]})
    assert times.ratio("a", "b") == 0.5
    calls = []
    side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
