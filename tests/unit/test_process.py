"""The process: its share of the cores, and a log whose level the user sets."""

import logging
import subprocess
import sys

import pytest

from components import process
from components.errors import UserError


@pytest.mark.parametrize(("given", "expected"), [("", 4), ("2", 2), ("9", 4), (" 3 ", 3)])
def test_a_stage_uses_its_share_of_the_cores(monkeypatch, given, expected):
    monkeypatch.setattr(process, "available_cores", lambda: 4)
    monkeypatch.setenv(process.CORES_VARIABLE, given)
    assert process.stage_cores() == expected


@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5", "²"])
def test_a_share_that_is_no_number_of_cores_is_refused(monkeypatch, given):
    monkeypatch.setenv(process.CORES_VARIABLE, given)
    with pytest.raises(UserError, match=f"ROBUSTRAIN_CORES: is not a number of cores .*{given}"):
        process.stage_cores()


def logged(level):
    """What a process writes to standard error that logs at every level, as the project and as another library."""
    code = """
import logging
from components.process import set_up_logging
set_up_logging()
for name in ("components.store.x", "robustrain", "urllib3"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)("text")
"""
    environment = {"PYTHONPATH": ":".join(sys.path), **({process.LOG_LEVEL_VARIABLE: level} if level else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [tuple(line.split()[1:3]) for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("", ["INFO", "WARNING", "ERROR"]),
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("WARNING", ["WARNING", "ERROR"]),
        ("error", ["ERROR"]),
    ],
)
def test_the_variable_sets_the_level_of_this_project_and_not_of_others(level, levels):
    ours = [(name, f"{logger}:") for logger in ("components.store.x", "robustrain") for name in levels]
    assert logged(level) == [*ours, ("WARNING", "urllib3:"), ("ERROR", "urllib3:")]


def test_an_unknown_level_is_one_line(monkeypatch):
    monkeypatch.setenv(process.LOG_LEVEL_VARIABLE, "wraning")
    with pytest.raises(UserError, match=r"ROBUSTRAIN_LOG_LEVEL: unknown log level, did you mean 'warning'\?"):
        process.set_up_logging()


def test_a_handler_of_the_program_stays_the_only_one(monkeypatch):
    for name in process._PROJECT_LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    handler = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    process.set_up_logging()
    assert logging.getLogger().handlers == [handler]
    assert logging.getLogger("components").level == logging.INFO
