"""Keeps a training's checkpoints: one thread writes them to disk beside the training, another copies them to artifacts.

A checkpoint that must be on disk is there before anything waits for the network; the copies follow, always of the
newest one. The copies are for a machine with a new disk. There are two, `a` and `b`, written by turns, and
`latest.json`, which names the complete one. It is written last, and the next copy always overwrites the other: an
interrupted copy, in this process or a later one, leaves the previous copy intact.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from components.files import write_json
from components.train.checkpoint import PREFIX, Snapshot, age_of, read_checkpoint, write_checkpoint

LATEST = "latest.json"
_COPIES = ("a", "b")
_KEPT = 2
_log = logging.getLogger(__name__)

Upload = Callable[[Path, str], None]
"""Copies a file or folder to an artifact path."""
Fetch = Callable[[str, Path], Path | None]
"""Copies an artifact to a local path; None if it does not exist."""
ReadCheckpoint = Callable[[Path], Snapshot | None]
"""Reads a checkpoint's folder; None if it is not valid."""


class CheckpointThreads:
    """The writing and the copying thread. Managers of one training share them, which keeps their order."""

    def __init__(self) -> None:
        self.write = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.copy = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-copy")

    def close(self) -> None:
        """Ends the threads when their work is done."""
        self.write.shutdown(wait=True)
        self.copy.shutdown(wait=True)


class CheckpointManager:
    """The checkpoints of one stage: the newest two on this machine, the newest also among the run's artifacts.

    Args:
        folder: local folder of the checkpoints.
        fingerprint: the stage's; checkpoints of other stages are refused.
        upload: copies a file or folder to an artifact path; None keeps no copies.
        fetch: copies an artifact to a local path.
        artifact: artifact path of the copies.
        threads: threads shared with another manager; their owner closes them.
        warn: called with messages about failures that do not stop the training.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        upload: Upload | None = None,
        fetch: Fetch | None = None,
        artifact: str = "checkpoints",
        threads: CheckpointThreads | None = None,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        self.folder, self.fingerprint, self._warn = folder, fingerprint, warn
        self._threads, self._owns_threads = threads or CheckpointThreads(), threads is None
        self._mirror = ArtifactMirror(artifact, folder / ".copies", upload, fetch)
        self._pending: Future[None] | None = None
        self._to_copy: Path | None = None
        self._copying: Path | None = None
        self._written: tuple[int, ...] = ()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def busy(self) -> bool:
        """Whether an earlier checkpoint is still being written to this machine's disk."""
        return self._pending is not None and not self._pending.done()

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Gives a snapshot to the writing thread, one at a time; its copy follows, and `close` waits for that.

        Args:
            wait: return when the checkpoint is on this machine's disk.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        self.wait_until_written()
        self._pending = self._threads.write.submit(self._write, snapshot)
        if wait:
            self.wait_until_written()

    def wait_until_written(self) -> None:
        """Waits until the pending checkpoint is on this machine's disk.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for writing and copying, and ends the threads if they are this manager's own."""
        if self._owns_threads:
            self._threads.close()

    def _write(self, snapshot: Snapshot) -> None:
        identity = (snapshot.metadata["epoch"], *snapshot.age)
        if self._written == identity:
            return  # the same state, which may be on its way to the artifacts
        self._to_copy = write_checkpoint(self.folder, snapshot, self.fingerprint)
        self._written = identity
        for old in self._on_disk()[:-_KEPT]:
            if old != self._copying:
                shutil.rmtree(old, ignore_errors=True)
        self._threads.copy.submit(self._copy)

    def _copy(self) -> None:
        """Copies the newest checkpoint; older ones that were not copied in time are skipped."""
        place, self._to_copy = self._to_copy, None
        if place is None:
            return
        self._copying = place
        try:
            self._mirror.put(place)
        except Exception as error:  # the network may fail in any way; the checkpoint on disk is complete
            self._warn(f"checkpoint {place.name} was not uploaded: {error}")
        finally:
            self._copying = None

    def _on_disk(self) -> list[Path]:
        return sorted((path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()), key=age_of)

    def latest(self) -> Snapshot | None:
        """Returns the newest valid checkpoint, from this machine or else from the run's artifacts; None without one."""
        for part in self.folder.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
        local = list(reversed(self._on_disk()))
        found = next(filter(None, map(self._read, local)), None) or self._mirror.newest(self._read)
        if found is None and local:
            self._warn("no checkpoint is valid: the training starts from its beginning")
        return found

    def _read(self, place: Path) -> Snapshot | None:
        """Returns the checkpoint in a folder; None, with a warning, if it is not valid."""
        try:
            return read_checkpoint(place, self.fingerprint)
        except ValueError as error:
            self._warn(f"checkpoint {place} is not used: {error}")
            return None


class ArtifactMirror:
    """The two copies of one manager's checkpoints among a run's artifacts.

    Args:
        artifact: artifact path of the copies.
        scratch: local folder for fetched files.
    """

    def __init__(self, artifact: str, scratch: Path, upload: Upload | None, fetch: Fetch | None) -> None:
        self._artifact, self._scratch, self._upload, self._fetch = artifact, scratch, upload, fetch
        self._complete: str | None = None
        self._looked_up = False

    def put(self, checkpoint: Path) -> None:
        """Copies a checkpoint, then names the copy in `latest.json`. Does nothing without an `upload`.

        Raises:
            Exception: any error of the upload; `latest.json` still names the previous copy.
        """
        if self._upload is None:
            return
        place = "b" if self._complete_copy() == "a" else "a"
        self._upload(checkpoint, f"{self._artifact}/{place}")
        self._upload(write_json(self._scratch / LATEST, {"place": place}), f"{self._artifact}/{LATEST}")
        self._complete = place

    def newest(self, read: ReadCheckpoint) -> Snapshot | None:
        """Returns the copy named in `latest.json` if it is valid, else the newest valid copy, else None."""
        named = self._complete_copy()
        found = {place: self._get(place, read) for place in ([named] if named else _COPIES)}
        if named and found[named] is None:
            found = {place: self._get(place, read) for place in _COPIES if place != named}
        valid = {place: snapshot for place, snapshot in found.items() if snapshot is not None}
        self._complete = max(valid, key=lambda place: valid[place].age, default=None)
        return valid[self._complete] if self._complete else None

    def _get(self, place: str, read: ReadCheckpoint) -> Snapshot | None:
        if self._fetch is None:
            return None
        to = self._scratch / f"copy-{place}"
        shutil.rmtree(to, ignore_errors=True)
        try:
            return read(to) if self._fetch(f"{self._artifact}/{place}", to) is not None else None
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def _complete_copy(self) -> str | None:
        """The copy named in `latest.json`; None if the file does not exist or cannot be read."""
        if not self._looked_up:
            self._looked_up, self._complete = True, self._fetch_latest()
        return self._complete

    def _fetch_latest(self) -> str | None:
        if self._fetch is None:
            return None
        to = self._scratch / f"fetched-{LATEST}"
        try:
            found = self._fetch(f"{self._artifact}/{LATEST}", to)
            place = json.loads(found.read_text())["place"] if found is not None else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            to.unlink(missing_ok=True)
        return place if place in _COPIES else None
