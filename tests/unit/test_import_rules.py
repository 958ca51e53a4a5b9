"""Who may import whom: the walls of the house, read from the code's syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import circle_in, files, import_graph, imported

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"data", "train", "evaluate", "promote", "report"}
REPORT_MODULES = {"page", "terminal"}
"""Modules of the report besides `config` that the pipeline may import: the command line shows results with them."""
LEAVES = {
    "config_model",
    "errors",
    "files",
    "fingerprint",
    "imagenet1k_tags",
    "process",
    "result_rows",
    "settings",
    "stage_records",
    "statistics",
    "threats",
    "wording",
}
"""Modules directly in `components` that every package may import."""
ALLOWED = {
    **{leaf: {leaf, "errors"} for leaf in LEAVES},
    "statistics": {"statistics"},
    "result_rows": {"result_rows", "threats", "errors"},
    "stage_records": {"stage_records", "result_rows", "threats"},
    "wording": {"wording", "statistics"},
    "models": {"models", "errors", "files", "imagenet1k_tags"},
    "attack": {"attack", "errors"},
    "store": {"store", *LEAVES},
    "launch": {"launch", "store", *LEAVES},
    "data": {"data", "store", *LEAVES},
    **{stage: {stage, "launch", "store", "data", "models", "attack", *LEAVES} for stage in STAGES - {"data", "report"}},
    "report": {"report", "store", *LEAVES},
}
ONLY_IN = {
    "kfp": ("pipeline/",),
    "mlflow": ("components/store/",),
    "boto3": ("components/store/",),
    "kubernetes": ("components/launch/", "pipeline/doctor.py"),
    "ray": ("components/launch/", "components/train/ray_trainer.py", "components/evaluate/executor.py"),
    "ffcv": ("components/data/",),
    "torch": ("components/",),
}


def package_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "components" and len(parts) > 1 else "pipeline"


def breaches(path, names):
    relative, package = path.relative_to(ROOT).as_posix(), package_of(path)
    for name in names:
        parts = name.split(".")
        if parts[0] in ONLY_IN and not relative.startswith(ONLY_IN[parts[0]]):
            yield f"{relative} imports {name}"
        if parts[0] == "torch" and package == "report":
            yield f"{relative} imports {name}; the report runs in the pipeline's slim image, which has no torch"
        if parts[0] == "pipeline" and package != "pipeline":
            yield f"{relative} imports upward: {name}"
        if parts[0] == "components" and len(parts) > 1:
            yield from _component_breach(relative, package, parts)


def _component_breach(relative, package, parts):
    other, is_config = parts[1], len(parts) > 2 and parts[2] == "config"
    if package == "pipeline":
        shows_results = other == "report" and len(parts) > 2 and parts[2] in REPORT_MODULES
        if other not in {*LEAVES, "store", "launch"} and not (other in STAGES and is_config) and not shows_results:
            yield f"{relative} imports {'.'.join(parts)}"
    elif package != "__init__" and other not in ALLOWED[package]:
        yield f"{relative} imports {'.'.join(parts)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_imports_only_what_its_package_may(path):
    assert list(breaches(path, imported(path))) == []


def test_no_module_imports_itself_over_others():
    """Circles hide in imports within functions, so those count too; imports for types alone do not."""
    assert circle_in(import_graph()) == []


def test_a_circle_is_found():
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_statistics_need_nothing_but_the_standard_library():
    """The pipeline and two stages share them, and the pipeline's slim image has no torch."""
    for name in imported(ROOT / "components/statistics.py"):
        assert name.split(".")[0] in sys.stdlib_module_names, name


def test_training_step_stands_alone():
    """It can be copied to a bare GPU machine: torch, timm, the standard library, and the attack."""
    for name in imported(ROOT / "components/train/train_step.py"):
        top = name.split(".")[0]
        assert top in {"torch", "timm"} or top in sys.stdlib_module_names or name.startswith("components.attack"), name


@pytest.mark.parametrize(
    ("path", "line", "caught"),
    [
        ("pipeline/x.py", "import torch", True),
        ("pipeline/x.py", "from components.train.loop import fit", True),
        ("pipeline/x.py", "from components.train.config import TrainConfig", False),
        ("components/train/x.py", "import components.evaluate.results", True),
        ("components/report/x.py", "from components.evaluate.config import Threat", True),
        ("components/report/x.py", "from components.models.weights import read_card", True),
        ("components/report/x.py", "from components.wording import percent", False),
        ("components/report/x.py", "import torch", True),
        ("pipeline/x.py", "from components.report.page import render_template", False),
        ("pipeline/x.py", "from components.report.charts import radius_charts", True),
        ("components/models/x.py", "from components.store.settings import StorageSettings", True),
        ("components/attack/x.py", "from components.errors import UserError", False),
        ("components/store/x.py", "from pipeline.recipe import load", True),
        ("components/data/x.py", "import mlflow", True),
        ("components/statistics.py", "from components.errors import UserError", True),
        ("pipeline/x.py", "from components.statistics import wilson", False),
        ("components/train/loop.py", "import ray.train", True),
        ("components/train/ray_trainer.py", "import ray.train", False),
    ],
)
def test_rules_catch_what_they_forbid(path, line, caught):
    assert bool(list(breaches(ROOT / path, imported(ROOT / path, ast.parse(line))))) is caught


def test_command_line_loads_nothing_heavy():
    """`robustrain --help` must answer at once, so importing the CLI may not pull in any of these."""
    code = "import sys, pipeline.cli; print(*sorted(m for m in sys.modules if m in {'torch','kfp','mlflow','ray','numpy','ffcv','matplotlib','pydantic','boto3'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
