"""The documents' tables of settings are what the settings classes say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("settings_tables", ROOT / "docs/settings_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load()


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_a_document_has_the_tables_of_the_classes(name: str) -> None:
    text = (ROOT / name).read_text()
    assert tables.MARKED.search(text), "the marks are gone"
    assert tables.updated(text) == text, "run make docs"


def test_a_changed_table_is_noticed_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for name in tables.DOCUMENTS:
        (tmp_path / name).write_text((ROOT / name).read_text())
    guide = tmp_path / "docs/cluster.md"
    right = guide.read_text()
    guide.write_text(right.replace("| image pull policy |", "| something else |"))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert capfd.readouterr().err == "docs/cluster.md is not up to date: run make docs\n"
    assert tables.main([]) == 0
    assert guide.read_text() == right
    assert tables.main(["--check"]) == 0


def test_every_variable_of_the_code_is_in_a_document() -> None:
    """Also those that no settings class reads; `ROBUSTRAIN_SPEC` and its like are passed between our own processes."""
    internal = {
        "ROBUSTRAIN_AGAIN",
        "ROBUSTRAIN_FORKSERVER_OF",
        "ROBUSTRAIN_LAUNCHER",
        "ROBUSTRAIN_LIVE",
        "ROBUSTRAIN_SPEC",
    }
    files = [path for folder in ("components", "pipeline") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in files for name in re.findall(r'"(ROBUSTRAIN_[A-Z_]+)"', path.read_text())}
    documents = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert "ROBUSTRAIN_HOME" in used
    assert sorted(name for name in used - internal if f"`{name}`" not in documents) == []
