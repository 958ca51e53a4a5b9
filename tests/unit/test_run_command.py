"""What the commands print can be typed as it stands, and says what a run leaves alone."""

import sys
from types import SimpleNamespace

import pytest

from pipeline import run_command
from pipeline.recipe import build
from tests.recipes import small


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A Python with `mlflow` beside it, in a folder with a blank in its name that is not on the PATH."""
    folder = tmp_path / "my venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "mlflow").touch(mode=0o755)
    monkeypatch.setattr(run_command, "sys", SimpleNamespace(executable=str(folder / "python"), stdout=sys.stdout))
    monkeypatch.setenv("PATH", "/nowhere")
    return folder


def test_mlflow_is_called_by_its_path_where_the_shell_does_not_find_it(python):
    assert run_command.mlflow_command() == f"'{python / 'mlflow'}'"


def test_mlflow_is_called_by_its_name_where_the_shell_finds_it(python, monkeypatch):
    monkeypatch.setenv("PATH", str(python))
    assert run_command.mlflow_command() == "mlflow"


def test_mlflow_that_is_nowhere_is_called_by_its_name(python):
    (python / "mlflow").unlink()
    assert run_command.mlflow_command() == "mlflow"


def test_run_again_says_which_finished_stages_it_leaves_alone(monkeypatch, capsys):
    monkeypatch.setattr(run_command, "check_machine", lambda: None)
    monkeypatch.setattr(run_command, "run_with_display", lambda *_: None)
    monkeypatch.setattr(run_command, "_conclude", lambda *_: None)
    run_command.run_and_show(build(small()), ("pretrain",), 0)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed == (
        "--again: finished stages that depend on it are reused (adversarial, evaluate); name them too to run them again"
    )
    run_command.run_and_show(build(small()), ("evaluate",), 0)
    assert capsys.readouterr().out == ""
