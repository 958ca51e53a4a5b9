"""Checkpoints that are whole or not there: safetensors and JSON, digests written last, the previous one kept.

One checkpoint is a folder: `<group>.safetensors` for each group of tensors, `state.json`, and `manifest.json` with size
and sha256 of both kinds and the stage's fingerprint. It is written beside its place and renamed; a folder that does not
hold what its manifest says, or that belongs to another stage, is refused aloud and the previous one is used.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.store.digests import FileDigest, differs, digest_file, files_below, write_json

FORMAT = 1
_KEPT = 2
_PREFIX = "step-"


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


def write_checkpoint(folder: Path, snapshot: Snapshot, fingerprint: str) -> Path:
    """Writes a checkpoint into `folder` and returns its path there."""
    again = f"-again{snapshot.backs:02d}" if snapshot.backs else ""
    place = folder / f"{_PREFIX}{snapshot.step:09d}-{int(snapshot.facts['epoch']):05d}{again}"
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
        problem = "is outside the checkpoint" if Path(name).name != name else differs(place / name, digest)
        if problem:
            raise ValueError(f"{name} {problem}")
    groups = [name for name in expected if name.endswith(".safetensors")]
    try:
        tensors = {name.removesuffix(".safetensors"): load_file(place / name) for name in groups}
        return Snapshot(tensors, json.loads((place / "state.json").read_text()))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error})") from None


class CheckpointStore:
    """The checkpoints of one stage, written and uploaded by a thread beside the training.

    Args:
        folder: where they lie on this machine.
        fingerprint: the stage's; checkpoints of others are refused.
        upload: copies a folder to an artifact path, for machines that come later.
        fetch: copies an artifact path into a folder; None where there is nothing.
        artifact: path below which uploads lie.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        upload: Callable[[Path, str], None] | None = None,
        fetch: Callable[[str, Path], Path | None] | None = None,
        artifact: str = "checkpoints",
    ) -> None:
        self.folder, self.fingerprint, self._artifact = folder, fingerprint, artifact
        self._upload, self._fetch = upload, fetch
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._slot = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def busy(self) -> bool:
        """Whether an earlier checkpoint is still being written or uploaded."""
        return self._pending is not None and not self._pending.done()

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Hands a snapshot to the writing thread; one at a time. `wait` returns once it is on this machine's disk.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        self.settle()
        if wait:
            self._publish(self._write(snapshot))
        else:
            self._pending = self._thread.submit(lambda: self._publish(self._write(snapshot)))

    def settle(self) -> None:
        """Waits for the checkpoint under way and raises what befell it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread after its work."""
        self._thread.shutdown(wait=True)

    def _write(self, snapshot: Snapshot) -> Path:
        place = write_checkpoint(self.folder, snapshot, self.fingerprint)
        for old in self._places()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def _publish(self, place: Path) -> None:
        """Two places take turns in the run's artifacts, so the one before survives an upload that is cut off."""
        if self._upload is None:
            return
        self._slot ^= 1
        try:
            self._upload(place, f"{self._artifact}/{'ab'[self._slot]}")
        except Exception as error:  # the network may fail in any way; training goes on, the copy on disk is whole
            print(f"warning: checkpoint {place.name} was not uploaded: {error}", file=sys.stderr, flush=True)

    def _places(self) -> list[Path]:
        return sorted((path for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir()), key=_age)

    def latest(self) -> Snapshot | None:
        """The newest checkpoint that holds, from this machine or else from the run's artifacts; None without one."""
        for part in self.folder.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
        found = self._first_whole(list(reversed(self._places())))
        return found or self._from_artifacts()

    def _first_whole(self, places: list[Path]) -> Snapshot | None:
        for place in places:
            try:
                return read_checkpoint(place, self.fingerprint)
            except ValueError as error:
                print(f"warning: checkpoint {place} is not used: {error}", file=sys.stderr, flush=True)
        return None

    def _from_artifacts(self) -> Snapshot | None:
        if self._fetch is None:
            return None
        found = []
        for slot in "ab":
            to = self.folder / f".part-{slot}"
            if self._fetch(f"{self._artifact}/{slot}", to) is not None:
                snapshot = self._first_whole([to])
                found += [snapshot] if snapshot else []
            shutil.rmtree(to, ignore_errors=True)
        return max(found, key=lambda snapshot: (snapshot.backs, snapshot.step), default=None)


def _age(place: Path) -> tuple[str, str]:
    """Sorts checkpoints by when they were taken: a training that went back has smaller step numbers again."""
    step, again, backs = place.name.partition("-again")
    return backs if again else "00", step
