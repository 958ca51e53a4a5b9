"""Every `robustrain` and `make` line of the documents, help texts and messages is accepted by the program."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "k8s").rglob("*.md"))]
EXAMPLES = {"RECIPE": "quickstart", "NAME": "quickstart", "NAME-small": "steps-small", "RUN": "0a1b", "STAGE": "sweep"}
"""Placeholders of the documents -> what stands for them here."""
PLANNED = {"run", "plan", "compile"}
"""Commands whose recipe and overrides are planned."""


def in_fences(text):
    """`robustrain` command lines of code blocks: complete commands, without what comes before them and comments."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if found := re.match(r"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?robustrain (.+)", line):
                yield shlex.split(found[1], comments=True)


def in_sentences(text):
    """Commands between back quotes in prose; they may leave out arguments."""
    for words in re.findall(r"`robustrain ([^`{}]+)`", text):
        yield shlex.split(words)


def in_strings(path):
    """Commands between back quotes in the docstrings and messages of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from in_sentences(node.value)


def in_epilogs():
    for command in typer.main.get_command(app).commands.values():
        if command.epilog:
            assert command.epilog.startswith("Example: robustrain ")
            yield shlex.split(command.epilog.removeprefix("Example: robustrain "))


def complete():
    found = [words for document in DOCUMENTS for words in in_fences(document.read_text())]
    makefile = re.findall(r"\$\(BIN\)/robustrain (.+)", (ROOT / "Makefile").read_text())
    return sorted({shlex.join(words) for words in (*found, *in_epilogs(), *map(shlex.split, makefile))})


def mentioned():
    modules = [path for folder in ("pipeline", "components") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [words for document in DOCUMENTS for words in in_sentences(document.read_text())]
    return sorted({shlex.join(words) for words in (*found, *(w for path in modules for w in in_strings(path)))})


def complaint(words):
    """Parses a command line as the program does, without running it; the name of click's error, or an empty string."""
    words = [EXAMPLES.get(word, word) for word in words]
    root = typer.main.get_command(app)
    try:
        context = root.make_context("robustrain", words)
        name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)
    except Exception as error:  # typer has its own copy of click, whose classes have no public names
        return type(error).__name__
    return ""


def has_class_folders(folder):
    for split in ("train", "val"):
        for name in "abcdefghijkl":
            path = folder / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plans a recipe in a fresh home; folders of the documents, such as /data/imagenet, stand for a small set."""
    images = has_class_folders(tmp_path / "images")
    monkeypatch.setenv("ROBUSTRAIN_HOME", str(tmp_path / "home"))

    def plan(words):
        recipe = str(ROOT / words[1]) if words[1].endswith(".yaml") else words[1]
        overrides = [re.sub(r"=/data/\S+", f"={images}", words[i + 1]) for i, w in enumerate(words) if w == "--set"]
        options = [option for override in overrides for option in ("--set", override)]
        return CliRunner().invoke(app, ["plan", recipe, *options, "--json"])

    return plan


@pytest.mark.parametrize("line", complete())
def test_a_documented_command_is_accepted_and_its_recipe_can_be_planned(line, planned):
    words = [EXAMPLES.get(word, word) for word in shlex.split(line)]
    assert complaint(words) == ""
    if words[0] in PLANNED:
        done = planned(words)
        assert done.exit_code == 0, done.exception
    if words[0] == "experiments":
        for recipe in words[1:]:
            assert planned(["plan", recipe]).exit_code == 0
    if words[0] == "recipes":
        assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.parametrize("line", mentioned())
def test_a_command_named_in_prose_or_in_a_message_is_known(line):
    words = [word for word in shlex.split(line) if word not in {"...", "COMMAND"}]
    if words and words[0].startswith("-"):
        program, command = typer.main.get_command(app), typer.main.get_command(app).commands["results"]
        known = {option for part in (program, command) for parameter in part.params for option in parameter.opts}
        assert words[0] in known | {"--help", "-h"}
    elif words:
        assert complaint(words) in {"", "MissingParameter"}


def test_commands_are_found_where_they_are_written():
    lines = complete()
    assert "plan quickstart --set adversarial.epochs=8" in lines
    assert "report -o report.html" in lines
    assert "run tests/e2e/tiny.yaml" in lines
    assert "run quickstart --on kubeflow" in mentioned() + lines
    assert len(lines) >= 20


def test_a_wrong_command_line_is_noticed(planned):
    assert complaint(["plan", "quickstart", "--sett", "a=1"]) == "NoSuchOption"
    assert complaint(["plann", "quickstart"]) == "UsageError"
    assert complaint(["plan"]) == "MissingParameter"
    assert planned(["plan", "quickstart", "--set", "adversarial.epochs=5"]).exit_code != 0


@pytest.mark.parametrize(
    "line",
    sorted(
        {line for path in DOCUMENTS for line in re.findall(r"(?:`|^)make ([^`#\n]+)", path.read_text(), re.MULTILINE)}
    ),
)
def test_a_documented_make_line_is_known_to_make(line):
    done = subprocess.run(["make", "-n", *shlex.split(line)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
