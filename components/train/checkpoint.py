"""Checkpoints that are whole or not there: safetensors and JSON, digests written last, the previous one kept.

One checkpoint is a folder: `<group>.safetensors` for each group of tensors, `state.json`, and `manifest.json` with size
and sha256 of both kinds and the stage's fingerprint. It is written beside its place and renamed; a folder that does not
hold what its manifest says, or that belongs to another stage, is refused aloud and the previous one is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.files import FileDigest, digest_file, files_below, mismatch, write_json

FORMAT = 1
PREFIX = "step-"


@dataclass(frozen=True)
class Snapshot:
    """A training at one moment: groups of named CPU tensors, and everything else as JSON (`facts`)."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.facts["step"])

    @property
    def backs(self) -> int:
        """How often the training had gone back to an earlier state."""
        return int(self.facts.get("health", {}).get("backs", 0))

    @property
    def age(self) -> tuple[int, int]:
        """Sorts snapshots of one training by when they were taken: one that went back has smaller steps again."""
        return self.backs, self.step


def write_checkpoint(folder: Path, snapshot: Snapshot, fingerprint: str) -> Path:
    """Writes a checkpoint into `folder` and returns its path there."""
    again = f"-again{snapshot.backs:02d}" if snapshot.backs else ""
    place = folder / f"{PREFIX}{snapshot.step:09d}-{int(snapshot.facts['epoch']):05d}{again}"
    part = folder / f".part-{place.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for group, tensors in snapshot.tensors.items():
        save_file(dict(tensors), part / f"{group}.safetensors")
    write_json(part / "state.json", dict(snapshot.facts))
    files = {name: digest_file(path)._asdict() for name, path in files_below(part)}
    for name in files:
        _sync(part / name)
    write_json(part / "manifest.json", {"format": FORMAT, "fingerprint": fingerprint, "files": files})
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    _sync(folder)
    return place


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(place: Path, fingerprint: str) -> Snapshot:
    """Reads a checkpoint back.

    Raises:
        ValueError: it is torn, damaged, of another format or of another stage; the message says which.
    """
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        expected = {name: FileDigest(**digest) for name, digest in manifest["files"].items()}
        mine = (manifest["format"], manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has no readable manifest ({error})") from None
    if mine != (FORMAT, fingerprint):
        raise ValueError("it belongs to another stage or to another version of this program")
    for name, digest in expected.items():
        problem = "is outside the checkpoint" if Path(name).name != name else mismatch(place / name, digest)
        if problem:
            raise ValueError(f"{name} {problem}")
    groups = [name for name in expected if name.endswith(".safetensors")]
    try:
        tensors = {name.removesuffix(".safetensors"): load_file(place / name) for name in groups}
        return Snapshot(tensors, json.loads((place / "state.json").read_text()))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error})") from None


def age_of(place: Path) -> tuple[str, str]:
    """As `Snapshot.age`, from the name of a checkpoint's folder."""
    step, again, backs = place.name.partition("-again")
    return backs if again else "00", step
