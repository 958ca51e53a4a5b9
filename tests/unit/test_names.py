"""Names are the field's words: no identifier or file name has a word that only this project's past would explain."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = {
    *("crew", "conductor", "handover", "warm", "telling", "told", "said", "witness", "surroundings", "look", "reaper"),
    *("room", "rooms", "exposition", "computing", "preparing", "lane", "lanes", "goback"),
}
"""Words of earlier versions. Each has a word that a search engine knows: runner, validation, metrics, package, ..."""


def words(name):
    """The lower-case words of an identifier in snake case or camel case."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def names(tree):
    """(line, identifier) of everything that a file names itself: what it imports by name counts where it is defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def private_names(path, tree=None):
    found = [f"{path}: {word}" for word in words(path.stem) & PRIVATE]
    for line, name in names(tree or ast.parse(path.read_text())):
        # A test's name is a sentence.
        if not name.startswith("test_"):
            found += [f"{path}:{line} {name}" for _ in words(name) & PRIVATE]
    return found


def python_files():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := ROOT / line).exists()]


def test_no_name_has_a_private_word():
    assert [name for path in python_files() for name in private_names(path)] == []


@pytest.mark.parametrize("code", ["def warm_host(): pass", "class LiveLook: pass", "x.told = 1", "def f(said): pass"])
def test_private_words_are_found(code):
    assert len(private_names(ROOT / "x.py", ast.parse(code))) == 1


@pytest.mark.parametrize("code", ["warmup_epochs = 1", "def lookup(): pass", "roomy = 1"])
def test_other_words_are_not(code):
    assert private_names(ROOT / "x.py", ast.parse(code)) == []
