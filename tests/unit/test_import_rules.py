"""Who may import whom: the walls of the house, read from the code's syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGE_ROOMS = {"data", "train", "evaluate", "promote"}
PIPELINE_MAY = {
    "errors",
    "cores",
    "memory",
    "fingerprint",
    "store",
    "launch",
    "statistics",
    "threats",
    "result_rows",
    "stage_records",
    "wording",
}
REPORT_FOR_THE_PIPELINE = {"config", "terminal", "page"}
"""Modules of the report that the command line shows results with; none of them needs a torch."""
ALLOWED = {
    "models": {"models", "errors"},
    "attack": {"attack", "errors"},
    "store": {"store", "errors", "fingerprint"},
    "launch": {"launch", "store", "errors", "fingerprint"},
    "data": {"data", "errors", "cores", "fingerprint", "store"},
    **{
        room: {
            room,
            "errors",
            "cores",
            "fingerprint",
            "memory",
            "radius",
            "threats",
            "result_rows",
            "stage_records",
            "wording",
            "launch",
            "store",
            "data",
            "models",
            "attack",
            "statistics",
        }
        for room in STAGE_ROOMS - {"data"}
    },
    "report": {
        "report",
        "errors",
        "fingerprint",
        "store",
        "statistics",
        "threats",
        "result_rows",
        "stage_records",
        "wording",
    },
    "wording": {"wording", "statistics"},
    "statistics": {"statistics"},
    "errors": {"errors"},
    "cores": {"cores"},
    "memory": {"memory"},
    "fingerprint": {"fingerprint", "errors"},
    "radius": {"radius", "errors", "threats"},
    "threats": {"threats", "errors"},
    "result_rows": {"result_rows", "threats", "errors"},
    "stage_records": {"stage_records", "result_rows", "threats"},
}
ONLY_IN = {
    "kfp": ("pipeline/",),
    "mlflow": ("components/store/",),
    "boto3": ("components/store/",),
    "kubernetes": ("components/launch/", "pipeline/preflight.py"),
    "ray": ("components/launch/", "components/train/worker.py", "components/evaluate/shards.py"),
    "ffcv": ("components/data/",),
    "torch": ("components/",),
}


def files():
    return sorted(p for folder in ("pipeline", "components") for p in (ROOT / folder).rglob("*.py"))


def imported(path, tree=None):
    """Absolute dotted names of everything a file imports, wherever the statement stands; type-only imports are free."""
    tree = tree or ast.parse(path.read_text())
    free = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for inner in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in free:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "components" and len(parts) > 1 else "pipeline"


def breaches(path, names):
    relative, room = path.relative_to(ROOT).as_posix(), room_of(path)
    for name in names:
        parts = name.split(".")
        if parts[0] in ONLY_IN and not relative.startswith(ONLY_IN[parts[0]]):
            yield f"{relative} imports {name}"
        if parts[0] == "torch" and room == "report":
            yield f"{relative} imports {name}, and the pipeline's slim image has no torch"
        if parts[0] == "pipeline" and room != "pipeline":
            yield f"{relative} imports upward: {name}"
        if parts[0] == "components" and len(parts) > 1:
            yield from _component_breach(relative, room, parts)


def _component_breach(relative, room, parts):
    other, is_config = parts[1], len(parts) > 2 and parts[2] == "config"
    if room == "pipeline":
        allowed = other in PIPELINE_MAY or (other in STAGE_ROOMS and is_config)
        shows_results = other == "report" and len(parts) > 2 and parts[2] in REPORT_FOR_THE_PIPELINE
        if not (allowed or shows_results):
            yield f"{relative} imports {'.'.join(parts)}"
    elif room != "__init__" and other not in ALLOWED[room]:
        yield f"{relative} imports {'.'.join(parts)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_imports_only_what_its_room_may(path):
    assert list(breaches(path, imported(path))) == []


def test_statistics_need_nothing_but_the_standard_library():
    """The pipeline and two stage rooms share them, and the pipeline's slim image has no torch."""
    for path in (ROOT / "components/statistics").glob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or name.startswith("components.statistics"), name


def test_training_step_stands_alone():
    """It can be copied to a bare GPU machine: torch, timm, the standard library, and the attack."""
    for name in imported(ROOT / "components/train/step.py"):
        top = name.split(".")[0]
        assert top in {"torch", "timm"} or top in sys.stdlib_module_names or name.startswith("components.attack"), name


@pytest.mark.parametrize(
    ("path", "line", "caught"),
    [
        ("pipeline/x.py", "import torch", True),
        ("pipeline/x.py", "from components.train.loop import fit", True),
        ("pipeline/x.py", "from components.train.config import TrainConfig", False),
        ("components/train/x.py", "import components.evaluate.gallery", True),
        ("components/report/x.py", "from components.evaluate.config import Threat", True),
        ("components/report/x.py", "from components.models.card import read_card", True),
        ("components/report/x.py", "import torch", True),
        ("pipeline/x.py", "from components.report.page import render_template", False),
        ("pipeline/x.py", "from components.report.charts import radius_charts", True),
        ("components/models/x.py", "from components.store.places import Places", True),
        ("components/attack/x.py", "from components.errors import UserError", False),
        ("components/store/x.py", "from pipeline.recipe import load", True),
        ("components/data/x.py", "import mlflow", True),
        ("components/statistics/x.py", "from components.errors import UserError", True),
        ("pipeline/x.py", "from components.statistics import wilson", False),
        ("components/train/loop.py", "import ray.train", True),
        ("components/train/worker.py", "import ray.train", False),
    ],
)
def test_rules_catch_what_they_forbid(path, line, caught):
    assert bool(list(breaches(ROOT / path, imported(ROOT / path, ast.parse(line))))) is caught


def test_command_line_loads_nothing_heavy():
    """`robustrain --help` must answer at once, so importing the CLI may not pull in any of these."""
    code = "import sys, pipeline.cli; print(*sorted(m for m in sys.modules if m in {'torch','kfp','mlflow','ray','numpy','ffcv','matplotlib','pydantic','boto3'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
