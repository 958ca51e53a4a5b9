"""The locked set of packages is whole: nothing that a locked package needs is left to whatever is there."""

import importlib.metadata
import re
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
