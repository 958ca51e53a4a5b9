"""The format of a checkpoint: safetensors and JSON, complete or absent.

One checkpoint is a folder: `<group>.safetensors` for each group of tensors, `state.json`, and `manifest.json` with size
and sha256 of both kinds and the stage's fingerprint, written last. The folder is written under a temporary name, synced
and renamed. A folder that does not match its manifest, or that belongs to another stage, is refused.
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

from components.files import FileDigest, digest_file, files_below, fsync_path, mismatch, write_json

FORMAT = 2
PREFIX = "step-"


@dataclass(frozen=True)
class Snapshot:
    """A training at one moment: groups of named CPU tensors, and everything else as JSON (`metadata`)."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.metadata["step"])

    @property
    def num_rollbacks(self) -> int:
        """Number of rollbacks so far."""
        return int(self.metadata.get("monitor", {}).get("num_rollbacks", 0))

    @property
    def age(self) -> tuple[int, int]:
        """Sort key by time: after a rollback the step is smaller again."""
        return self.num_rollbacks, self.step


def write_checkpoint(folder: Path, snapshot: Snapshot, fingerprint: str) -> Path:
    """Writes a checkpoint into `folder` and returns its path there."""
    rollbacks = f"-rollback{snapshot.num_rollbacks:02d}" if snapshot.num_rollbacks else ""
    place = folder / f"{PREFIX}{snapshot.step:09d}-{int(snapshot.metadata['epoch']):05d}{rollbacks}"
    part = folder / f".part-{place.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for group, tensors in snapshot.tensors.items():
        save_file(dict(tensors), part / f"{group}.safetensors")
    write_json(part / "state.json", dict(snapshot.metadata))
    files = {name: digest_file(path)._asdict() for name, path in files_below(part)}
    for name in files:
        fsync_path(part / name)
    write_json(part / "manifest.json", {"format": FORMAT, "fingerprint": fingerprint, "files": files})
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    fsync_path(folder)
    return place


def read_checkpoint(place: Path, fingerprint: str) -> Snapshot:
    """Reads a checkpoint back.

    Raises:
        ValueError: it is incomplete, damaged, of another format or of another stage; the message says which.
    """
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        expected = {name: FileDigest(**digest) for name, digest in manifest["files"].items()}
        written_by = (manifest["format"], manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has no readable manifest ({error})") from None
    if written_by != (FORMAT, fingerprint):
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
    """Returns the sort key of `Snapshot.age` from the name of a checkpoint's folder."""
    step, _, num_rollbacks = place.name.partition("-rollback")
    return num_rollbacks or "00", step
