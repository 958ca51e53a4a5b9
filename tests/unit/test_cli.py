"""The command line: help, exit statuses, one-line errors, JSON."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]


def robustrain(*arguments, home, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTRAIN_HOME": str(home), **environment}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    "command", ["run", "cancel", "plan", "compile", "results", "report", "recipes", "experiments", "doctor"]
)
def test_every_command_has_help(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"]).output
    for command in ("run", "cancel", "plan", "compile", "results", "report", "recipes", "experiments", "doctor"):
        assert command in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "quickstrat"), "did you mean 'quickstart'"),
        (("plan", "quickstart", "--set", "adversarial.epohcs=3"), "did you mean 'epochs'"),
        (("plan", "quickstart", "--set", "adversarial.attack.eps=8"), "stages.adversarial.attack.eps"),
        (("run", "quickstart", "--again", "adversaril"), "did you mean 'adversarial'"),
        (("run", "quickstart", "--on", "mars"), "--on"),
        (("run", "quickstart", "--on", "kubeflow", "--again", "pretrain"), "--again: means nothing on a cluster"),
        (("run", "quickstart", "--on", "kubeflow", "-j", "3"), "--jobs: means nothing on a cluster"),
        (("cancel", "some-run"), "ROBUSTRAIN_KFP_HOST"),
        (("results",), "no run is known here"),
        (("report",), "no run is known here"),
        (("recipes", "--show", "nothing"), "unknown recipe"),
        (("plan", "steps-small", "--set", "adversarial-{step}.epochs=3"), "did you mean 'adversarial-{steps}'"),
        (("plan", "steps-small", "--set", "matrix.steps=[1.5]"), "matrix.steps: a label becomes part of stage names"),
        (("experiments", "steps-smal"), "did you mean 'steps-small'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, said, tmp_path):
    done = robustrain(*arguments, home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_recipes_are_listed_and_shown():
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).output)
    assert "quickstart" in listed
    shown = json.loads(CliRunner().invoke(app, ["recipes", "--show", "quickstart", "--json"]).output)
    assert shown["stages"]["adversarial"]["attack"]["norm"] == "Linf"


def test_plan_of_a_fresh_home_runs_everything_and_writes_nothing(tmp_path):
    done = robustrain("plan", "quickstart", "--json", home=tmp_path / "home")
    stages = json.loads(done.stdout)
    assert {stage["action"] for stage in stages} == {"run"}
    assert len({stage["fingerprint"] for stage in stages}) == len(stages)
    assert not (tmp_path / "home" / "mlflow.db").exists()


def test_doctor_reports_as_json(tmp_path):
    done = robustrain("doctor", "--json", home=tmp_path / "home")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["space"]["state"] == "ok"
    assert found["training"]["state"] == "ok"


def test_doctor_fails_where_the_home_cannot_be_written(tmp_path):
    done = robustrain("doctor", home=Path("/proc/no-such-home"))
    assert done.returncode == 2
    assert "ROBUSTRAIN_HOME" in done.stdout


def test_no_space_is_said_before_anything_runs(tmp_path, monkeypatch):
    from components.store.places import Places
    from pipeline import preflight

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**8))
    found = preflight.examine(Places.from_environment({}, home=tmp_path))
    [space] = [finding for finding in found if finding.what == "space"]
    assert space.state == "error"
    assert "0.1 GB free" in space.fact
