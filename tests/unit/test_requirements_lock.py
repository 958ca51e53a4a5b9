"""The lock agrees with pyproject.toml and is complete: no version is left to the day of the installation."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKED = dict(
    re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line).groups()
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
)
VERSIONS = {canonicalize_name(name): version for name, version in LOCKED.items()}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


@pytest.mark.parametrize("requirement", [one for group in GROUPS.values() for one in group])
def test_what_the_project_asks_for_is_locked_in_a_version_that_it_accepts(requirement):
    wanted = Requirement(requirement)
    version = VERSIONS.get(canonicalize_name(wanted.name))
    assert version is not None, "run: make lock"
    assert wanted.specifier.contains(version, True)


@pytest.mark.parametrize("name", sorted(LOCKED))
def test_what_a_locked_package_needs_is_locked(name):
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed here")
    ours = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert [one.name for one in ours if canonicalize_name(one.name) not in VERSIONS] == []
    wrong = [str(one) for one in ours if not one.specifier.contains(VERSIONS[canonicalize_name(one.name)], True)]
    assert wrong == []
