"""The documents name files, links and commands that exist; decisions are history and may name files of their time."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:components|pipeline|tests|docs|benchmarks|k8s|docker)/[\w/.-]+\.\w+)`")
TEST = re.compile(r"`(tests/[\w/.-]+\.py)::(\w+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def missing(document: Path) -> list[str]:
    text = document.read_text()
    files = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    tests = [f"{file}::{name}" for file, name in TEST.findall(text) if not _defines(ROOT / file, name)]
    return files + tests + [name for name in LINK.findall(text) if not (document.parent / name).exists()]


def _defines(file: Path, name: str) -> bool:
    return file.exists() and f"\ndef {name}(" in file.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_links_of_a_document_exist(document):
    assert missing(document) == []


def test_a_missing_file_and_a_broken_link_are_found(tmp_path):
    document = tmp_path / "x.md"
    document.write_text(
        "See `pipeline/stages.py`, `pipeline/gone.py`, [this](gone.md), [that](x.md#part), [web](https://a.b/c), "
        "`tests/unit/test_documents.py::missing`, `tests/unit/test_documents.py::test_gone`."
    )
    assert missing(document) == ["pipeline/gone.py", "tests/unit/test_documents.py::test_gone", "gone.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_in_documents_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), flags=re.MULTILINE)) <= targets
