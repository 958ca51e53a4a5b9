"""The command line: help, exit statuses, one-line errors, JSON."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.errors import UserError
from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]


def robustrain(*arguments, home, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTRAIN_HOME": str(home), **environment}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    "command", ["run", "cancel", "plan", "compile", "results", "runs", "report", "recipes", "experiments", "doctor"]
)
def test_every_command_has_help(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_a_foreign_module_named_components_is_one_line_that_names_its_file(tmp_path):
    (tmp_path / "components.py").write_text("x = 1")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-P", "-m", "pipeline.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path / 'components.py'} is imported instead of the package `components` of this program. "
        "rename it, or remove its folder from PYTHONPATH.\n"
    )


def test_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"]).output
    for command in (
        "run",
        "cancel",
        "plan",
        "compile",
        "results",
        "runs",
        "report",
        "recipes",
        "experiments",
        "doctor",
    ):
        assert command in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "quickstrat"), "did you mean 'quickstart'"),
        (("plan", "quickstart", "--set", "adversarial.epohcs=3"), "did you mean 'epochs'"),
        (("plan", "quickstart", "--set", "adversarial.attack.eps=8"), "stages.adversarial.attack.eps"),
        (("run", "quickstart", "--again", "adversaril"), "did you mean 'adversarial'"),
        (("run", "quickstart", "--on", "mars"), "--on"),
        (("run", "quickstart", "--on", "kubeflow", "--again", "pretrain"), "--again: has no effect on a cluster"),
        (("run", "quickstart", "--on", "kubeflow", "-j", "3"), "--jobs: has no effect on a cluster"),
        (("run", "quickstart", "--on", "kubeflow", "--runner", "kfp"), "--runner: has no effect on a cluster"),
        (("run", "quickstart", "--runner", "kpf"), "--runner: unknown runner, did you mean 'kfp'?"),
        (("cancel", "some-run"), "ROBUSTRAIN_KFP_HOST"),
        (("results",), "no run is known here"),
        (("report",), "no run is known here"),
        (("runs",), "no run is known here"),
        (("results", "--json", "--csv"), "--csv: the two forms exclude each other"),
        (("recipes", "--show", "nothing"), "unknown recipe"),
        (("plan", "steps-small", "--set", "adversarial-{step}.epochs=3"), "did you mean 'adversarial-{steps}'"),
        (("plan", "steps-small", "--set", "matrix.steps=[1.5]"), "matrix.steps: a label becomes part of stage names"),
        (("experiments", "steps-smal"), "did you mean 'steps-small'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, expected, tmp_path):
    done = robustrain(*arguments, home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_the_version_is_printed(tmp_path):
    from importlib.metadata import version

    done = robustrain("--version", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"robustrain {version('robustrain')}\n")


@pytest.mark.parametrize("command", [[], ["run"], ["results"]])
def test_a_short_h_shows_the_help(command):
    runner = CliRunner()
    assert runner.invoke(app, [*command, "-h"]).output == runner.invoke(app, [*command, "--help"]).output != ""


def test_runs_are_listed_with_the_ids_that_other_commands_take(storage, monkeypatch):
    from components.store.tracking import Tracking

    monkeypatch.setenv("ROBUSTRAIN_HOME", str(storage.home))
    tracking = Tracking(storage)
    older, newer = (tracking.open_pipeline_run(name, {"recipe": name}, {"name": name}) for name in ("one", "two"))
    tracking.close_pipeline_run(older, state="complete")
    listed = json.loads(CliRunner().invoke(app, ["runs", "--json"]).output)
    states = {run["run_id"]: (run["name"], run["state"]) for run in listed}
    assert states == {older: ("one", "complete"), newer: ("two", "running")}
    shown = CliRunner().invoke(app, ["runs"]).output
    assert f"{older[:8]}  one  complete" in shown
    assert len(CliRunner().invoke(app, ["runs", "-n", "1"]).output.splitlines()) == 1
    found = CliRunner().invoke(app, ["results", "--run", older[:8], "--csv"])
    columns = found.output.splitlines()[0].split(",")
    assert columns[:5] == ["kind", "stage", "model", "stem", "dataset"]
    assert {"resolution", "image_set", "norm", "eps", "attack", "n", "clean_accuracy", "robust_accuracy"} < set(columns)
    with pytest.raises(UserError, match=r"no pipeline run with this id.*`robustrain runs` lists them"):
        raise CliRunner().invoke(app, ["results", "--run", "nothing"]).exception


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


@pytest.mark.slow
def test_doctor_reports_as_json(tmp_path):
    done = robustrain("doctor", "--json", home=tmp_path / "home")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["space"]["state"] == "ok"
    assert found["training"]["state"] == "ok"


@pytest.mark.slow
def test_doctor_fails_where_the_home_cannot_be_written(tmp_path):
    done = robustrain("doctor", home=Path("/proc/no-such-home"))
    assert done.returncode == 2
    assert "ROBUSTRAIN_HOME" in done.stdout


def test_a_home_that_is_a_file_is_said(tmp_path):
    (tmp_path / "home").write_text("no folder")
    done = robustrain("run", "quickstart", home=tmp_path / "home")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: home: {tmp_path / 'home'} is a file, not a folder. set ROBUSTRAIN_HOME to a folder of yours.\n"
    )


@pytest.mark.slow
def test_a_run_needs_the_training_packages_and_a_plan_does_not(tmp_path, monkeypatch):
    from components.store.settings import StorageSettings
    from pipeline import doctor, run_command

    monkeypatch.setenv("ROBUSTRAIN_HOME", str(tmp_path / "home"))
    run_command.check_machine()
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "torch" else version(name))
    with pytest.raises(UserError, match=r"training: not installed: torch.*pip install .*\[train\]"):
        run_command.check_machine()
    [training] = [f for f in doctor.examine(StorageSettings.from_environment()) if f.what == "training"]
    assert training.state == "warning"


@pytest.mark.parametrize(
    "state", ["", "raise ImportError('libopencv_core.so.406: no such file')", "import os; os.abort()"]
)
def test_doctor_tries_ffcv_before_it_calls_it_usable(tmp_path, state):
    """Its metadata can be there while its extension cannot be loaded, which ends some processes without a word."""
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv" / "__init__.py").write_text(state)
    path = f"{tmp_path}:{ROOT}"
    done = robustrain("doctor", "--json", home=tmp_path / "home", PYTHONPATH=path)
    [found] = [finding for finding in json.loads(done.stdout) if finding["what"] == "ffcv"]
    assert found["state"] == ("warning" if state else "ok")
    assert ("cannot be imported" in found["fact"]) is bool(state)
    if "ImportError" in state:
        assert "libopencv_core.so.406: no such file" in found["fact"]


@pytest.mark.parametrize("works", [True, False], ids=["works", "broken"])
def test_the_set_up_trusts_ffcv_only_when_it_can_be_imported(tmp_path, works):
    """A Python that knows FFCV's version is asked to import it; a broken one is built again (here: refused, no root)."""
    asked = tmp_path / "asked"
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in *\'import ffcv\'*) exit {int(not works)};; esac\nexit 0\n'
    )
    python.chmod(0o755)
    tools = {"dpkg": "exit 1", "id": "echo 1000", "sudo": "exit 1"}
    for name, does in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    command = ["sh", str(ROOT / "docker/ffcv.sh"), str(python)]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == (0 if works else 3)
    assert asked.read_text().splitlines()[0] == "-c import ffcv"


@pytest.mark.parametrize("output", ["p.txt", "folder", "file/p.yaml", "k8s.yaml", "link.yaml"])
def test_compile_says_where_it_cannot_write(tmp_path, output):
    (tmp_path / "folder").mkdir()
    (tmp_path / "k8s.yaml").write_text("kind: Secret")
    (tmp_path / "link.yaml").symlink_to("k8s.yaml")
    (tmp_path / "file").write_text("no folder")
    done = robustrain("compile", "quickstart", "-o", str(tmp_path / output), home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / output}: ")
    assert done.stderr.count("\n") == 1


def test_compile_replaces_an_earlier_pipeline(tmp_path):
    output = tmp_path / "p.yaml"
    for recipe in ("quickstart", "steps-small"):
        assert CliRunner().invoke(app, ["compile", recipe, "-o", str(output)]).exit_code == 0
        assert output.read_text().startswith(f"# PIPELINE DEFINITION\n# Name: robustrain-{recipe}\n")


def test_the_copied_report_replaces_reports_only(tmp_path, monkeypatch):
    from components.report.page import MARK
    from pipeline import results

    page, other = tmp_path / "report.html", tmp_path / "thesis.html"
    page.write_text(f"<title>a · {MARK}")
    other.write_text("<title>thesis</title>")
    found = results.Results("a" * 32, "demo", "complete", [], [], str(page))
    monkeypatch.setattr(results, "read", lambda storage, run: found)
    for _ in range(2):
        done = CliRunner().invoke(app, ["report", "-o", str(tmp_path / "copy.html")])
        assert done.output == f"{tmp_path / 'copy.html'}\n"
    assert (tmp_path / "copy.html").read_text() == page.read_text()
    with pytest.raises(UserError, match=r"thesis\.html: there is another file of this name, which is not replaced"):
        raise CliRunner().invoke(app, ["report", "-o", str(other)]).exception
    assert other.read_text() == "<title>thesis</title>"


def test_plan_needs_no_home_that_can_be_written(tmp_path):
    (tmp_path / "home").write_text("no folder")
    for name in "abcd":
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        (tmp_path / "images" / "train" / name / "1.png").write_bytes(b"x")
    source = f"digits.source={tmp_path / 'images'}"
    done = robustrain("plan", "quickstart", "--json", "--set", source, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert {stage["action"] for stage in json.loads(done.stdout)} == {"run"}


def test_a_damaged_data_base_is_said(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no data base" * 1000)
    for command in (("plan", "quickstart"), ("results",)):
        done = robustrain(*command, home=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: sqlite:///{tmp_path / 'mlflow.db'}: the tracking store cannot be opened")
        assert "move the file away" in done.stderr
        assert done.stderr.count("\n") == 1


def test_no_space_is_said_before_anything_runs(tmp_path, monkeypatch):
    from components.store.settings import StorageSettings
    from pipeline import doctor

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**8))
    found = doctor.examine(StorageSettings.from_environment({}, home=tmp_path))
    [space] = [finding for finding in found if finding.what == "space"]
    assert space.state == "error"
    assert "0.1 GB free" in space.fact


@pytest.mark.parametrize(("options", "level"), [((), ""), (("-v",), "info"), (("--verbose", "-vv"), "debug")])
def test_verbose_sets_the_log_level_of_the_command_and_of_its_children(monkeypatch, options, level):
    monkeypatch.setattr("pipeline.cli.set_up_logging", lambda default: None)
    monkeypatch.setenv("ROBUSTRAIN_LOG_LEVEL", "")
    assert CliRunner().invoke(app, [*options, "recipes"]).exit_code == 0
    assert os.environ["ROBUSTRAIN_LOG_LEVEL"] == level


@pytest.mark.parametrize("cores", ["abc", "0", "-1", "1.5", "²"])
def test_a_wrong_number_of_cores_is_one_line(tmp_path, cores):
    done = robustrain("plan", "quickstart", home=tmp_path, ROBUSTRAIN_CORES=cores)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: ROBUSTRAIN_CORES: is not a number of cores (got {cores!r}). "
        "give a whole number, 1 or more, or unset it for all cores.\n"
    )


def test_a_wrong_log_level_is_one_line(tmp_path):
    done = robustrain("recipes", home=tmp_path, ROBUSTRAIN_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert done.stderr == (
        "error: ROBUSTRAIN_LOG_LEVEL: unknown log level (got 'loud'). use one of: debug, info, warning, error.\n"
    )
