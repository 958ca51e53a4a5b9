"""The Dockerfiles: the files and modules that they name exist, and their versions are the project's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from components.launch.rayjob_settings import POD_FIELDS, RAY_VERSION, SECRET_KEYS
from pipeline import graph

ROOT = Path(__file__).parents[2]
FILES = ["train.Dockerfile", "pipeline.Dockerfile"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined, comments left out."""
    lines = (ROOT / "docker" / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [(word, " ".join(rest)) for word, *rest in (line.split() for line in text.splitlines() if line.strip())]


@pytest.mark.parametrize("name", FILES)
def test_copied_files_exist_and_are_not_ignored(name: str) -> None:
    ignored = (ROOT / "docker" / f"{name}.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is ignored"


@pytest.mark.parametrize("name", FILES)
def test_the_image_runs_as_the_user_that_the_pods_ask_for(name: str) -> None:
    last = max(index for index, (word, _) in enumerate(instructions(name)) if word == "FROM")
    assert ("USER", "1000:1000") in instructions(name)[last:]


@pytest.mark.parametrize("name", FILES)
def test_every_installation_is_locked_and_every_stage_has_one_base(name: str) -> None:
    runs = [rest for word, rest in instructions(name) if word == "RUN"]
    for command in re.findall(r"pip install (.*?)(?:&&|$)", "\n".join(runs), flags=re.MULTILINE):
        assert "-c requirements.lock" in command or "--no-deps" in command, command
    assert {rest.split()[0] for word, rest in instructions(name) if word == "FROM"} == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("name", FILES)
def test_the_modules_that_the_image_imports_exist(name: str) -> None:
    """An import that fails ends the build, and no test builds an image."""
    text = (ROOT / "docker" / name).read_text()
    trees = [ast.parse(code) for code in re.findall(r'python -c "([^"]*)"', text)]
    modules = {
        alias.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    members = [
        (node.module, alias.name)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert modules or members, "the image checks nothing"
    # FFCV's wheel is built by the image itself; this machine may have none.
    for module in modules - {"ffcv"}:
        assert importlib.util.find_spec(module), module
    for module, member in members:
        assert hasattr(importlib.import_module(str(module)), member), f"{module}.{member}"


def test_ray_in_the_image_is_the_version_that_the_job_names() -> None:
    assert f"ray=={RAY_VERSION}" in (ROOT / "requirements.lock").read_text().splitlines()


def test_ffcv_finds_the_libraries_of_the_release_it_was_built_on() -> None:
    text = (ROOT / "docker" / "train.Dockerfile").read_text()
    release = re.search(r"^ARG PYTHON_IMAGE=python:3\.11-slim-(\w+)$", text, flags=re.MULTILINE)
    assert release is not None
    assert release[1] == "bookworm"
    assert "libopencv-imgproc406" in text
    assert f'default = "python:3.11-slim-{release[1]}"' in (ROOT / "docker" / "docker-bake.hcl").read_text()


def bake(name: str) -> str:
    """The tag that docker-bake.hcl gives an image when nothing is set."""
    text = (ROOT / "docker" / "docker-bake.hcl").read_text()
    defaults = dict(re.findall(r'variable "(\w+)" \{\s*default = "([^"]+)"', text))
    [tag] = re.findall(rf'target "{name}" \{{.*?tags\s+= \["([^"]+)"\]', text, flags=re.DOTALL)
    return re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], tag)


def test_the_image_that_is_built_is_the_one_that_a_pipeline_names() -> None:
    assert bake("pipeline") == graph.IMAGE


def test_the_image_that_is_built_is_the_one_that_the_config_map_names() -> None:
    config = yaml.safe_load((ROOT / "k8s/base/config.yaml").read_text())
    assert config["data"]["ROBUSTRAIN_IMAGE"] == f"registry.example.com/{bake('train')}"
    guide = (ROOT / "docs/cluster.md").read_text()
    assert f"ROBUSTRAIN_PIPELINE_IMAGE=registry.example.com/{bake('pipeline')}" in guide
    assert "REGISTRY=registry.example.com/robustrain TAG=0.1.0 docker buildx bake" in guide


def test_the_variables_without_a_table_are_in_the_guide() -> None:
    guide = (ROOT / "docs/cluster.md").read_text()
    assert sorted(name for name in {*SECRET_KEYS, *POD_FIELDS} if f"`{name}`" not in guide) == []
