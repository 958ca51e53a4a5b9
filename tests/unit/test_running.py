"""What the commands print at the end can be typed as it stands."""

import sys
from types import SimpleNamespace

import pytest

from pipeline import running


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A Python with `mlflow` beside it, in a folder with a blank in its name that is not on the PATH."""
    folder = tmp_path / "my venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "mlflow").touch(mode=0o755)
    monkeypatch.setattr(running, "sys", SimpleNamespace(executable=str(folder / "python"), stdout=sys.stdout))
    monkeypatch.setenv("PATH", "/nowhere")
    return folder


def test_mlflow_is_called_by_its_path_where_the_shell_does_not_find_it(python):
    assert running.mlflow_command() == f"'{python / 'mlflow'}'"


def test_mlflow_is_called_by_its_name_where_the_shell_finds_it(python, monkeypatch):
    monkeypatch.setenv("PATH", str(python))
    assert running.mlflow_command() == "mlflow"


def test_mlflow_that_is_nowhere_is_called_by_its_name(python):
    (python / "mlflow").unlink()
    assert running.mlflow_command() == "mlflow"
