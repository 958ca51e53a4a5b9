"""Keeps a training's checkpoints: written by one thread beside the training, copied to the run's artifacts by another.

What must be on disk is there before anything waits for the network; the copies follow, the newest always.

Copies of checkpoints in the run's artifacts, for a machine whose disk is new.

Two places, `a` and `b`, take turns, and `latest.json` says which of them is whole. It is written last, and the next
copy always goes to the other place: a copy that is cut off, in this life or a later one, leaves the one before.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from components.files import write_json
from components.train.checkpoint import PREFIX, Snapshot, age_of, read_checkpoint, write_checkpoint

# MERGED

_KEPT = 2


def said_on_stderr(text: str) -> None:
    """Where a store says what went wrong when nobody else is given."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Hands:
    """The two threads that stores of one training share, so that what is handed in first is also done first."""

    def __init__(self) -> None:
        self.write = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.copy = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-copy")

    def close(self) -> None:
        """Ends them after their work."""
        self.write.shutdown(wait=True)
        self.copy.shutdown(wait=True)


class CheckpointStore:
    """The checkpoints of one stage: the newest two on this machine, the newest also among the run's artifacts.

    Args:
        folder: where they lie on this machine.
        fingerprint: the stage's; checkpoints of others are refused.
        upload: copies a file or folder to an artifact path, for machines that come later.
        fetch: copies an artifact to a local path; None where there is nothing.
        artifact: path below which the copies lie.
        hands: threads shared with another store, which are then closed by whoever made them.
        warn: told what went wrong without stopping the training.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        upload: Upload | None = None,
        fetch: Fetch | None = None,
        artifact: str = "checkpoints",
        hands: Hands | None = None,
        warn: Callable[[str], None] = said_on_stderr,
    ) -> None:
        self.folder, self.fingerprint, self._warn = folder, fingerprint, warn
        self._hands, self._own_hands = hands or Hands(), hands is None
        self._copies = Copies(artifact, folder / ".copies", upload, fetch)
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
        """Hands a snapshot to the writing thread; one at a time. `wait` returns once it is on this machine's disk.

        Its copy follows in either case; `close` waits for it.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        self.settle()
        self._pending = self._hands.write.submit(self._write, snapshot)
        if wait:
            self.settle()

    def settle(self) -> None:
        """Waits until the checkpoint under way is on this machine's disk and raises what befell it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for writing and copying, and ends the threads where they are this store's own."""
        if self._own_hands:
            self._hands.close()

    def _write(self, snapshot: Snapshot) -> None:
        if self._written == (snapshot.facts["epoch"], *snapshot.age):
            return  # the same state, which may be on its way to the artifacts
        self._to_copy = write_checkpoint(self.folder, snapshot, self.fingerprint)
        self._written = (snapshot.facts["epoch"], *snapshot.age)
        for old in self._places()[:-_KEPT]:
            if old != self._copying:
                shutil.rmtree(old, ignore_errors=True)
        self._hands.copy.submit(self._copy)

    def _copy(self) -> None:
        """Copies the newest checkpoint; older ones that were not copied in time are left out."""
        place, self._to_copy = self._to_copy, None
        if place is None:
            return
        self._copying = place
        try:
            self._copies.put(place)
        except Exception as error:  # the network may fail in any way; training goes on, the checkpoint on disk is whole
            self._warn(f"checkpoint {place.name} was not uploaded: {error}")
        finally:
            self._copying = None

    def _places(self) -> list[Path]:
        return sorted((path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()), key=age_of)

    def latest(self) -> Snapshot | None:
        """The newest checkpoint that holds, from this machine or else from the run's artifacts; None without one."""
        for part in self.folder.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
        here = list(reversed(self._places()))
        found = next(filter(None, map(self._whole, here)), None) or self._copies.newest(self._whole)
        if found is None and here:
            self._warn("no checkpoint holds: the training starts from its beginning")
        return found

    def _whole(self, place: Path) -> Snapshot | None:
        """The checkpoint in a folder; None, said aloud, where it does not hold."""
        try:
            return read_checkpoint(place, self.fingerprint)
        except ValueError as error:
            self._warn(f"checkpoint {place} is not used: {error}")
            return None


LATEST = "latest.json"
_PLACES = ("a", "b")

Upload = Callable[[Path, str], None]
"""Copies a file or folder to an artifact path."""
Fetch = Callable[[str, Path], Path | None]
"""Copies an artifact to a local path; None where there is nothing."""


class Copies:
    """The two copies of one store's checkpoints.

    Args:
        artifact: artifact path below which they lie.
        scratch: local folder for what is fetched.
    """

    def __init__(self, artifact: str, scratch: Path, upload: Upload | None, fetch: Fetch | None) -> None:
        self._artifact, self._scratch, self._upload, self._fetch = artifact, scratch, upload, fetch
        self._whole: str | None = None
        self._looked = False

    def put(self, checkpoint: Path) -> None:
        """Copies a checkpoint, then says that it is whole. Without an `upload` nothing happens.

        Raises:
            Exception: whatever the upload raises; the copy before is still the one that counts.
        """
        if self._upload is None:
            return
        place = "b" if self._whole_place() == "a" else "a"
        self._upload(checkpoint, f"{self._artifact}/{place}")
        self._upload(write_json(self._scratch / LATEST, {"place": place}), f"{self._artifact}/{LATEST}")
        self._whole = place

    def newest(self, read: Callable[[Path], Snapshot | None]) -> Snapshot | None:
        """The copy that is said to be whole, where it holds; else the newer of those that do; None without one.

        Args:
            read: reads a checkpoint's folder; None where it does not hold.
        """
        said = self._whole_place()
        found = {place: self._get(place, read) for place in ([said] if said else _PLACES)}
        if said and found[said] is None:
            found = {place: self._get(place, read) for place in _PLACES if place != said}
        whole = {place: snapshot for place, snapshot in found.items() if snapshot is not None}
        self._whole = max(whole, key=lambda place: whole[place].age, default=None)
        return whole[self._whole] if self._whole else None

    def _get(self, place: str, read: Callable[[Path], Snapshot | None]) -> Snapshot | None:
        if self._fetch is None:
            return None
        to = self._scratch / f"copy-{place}"
        shutil.rmtree(to, ignore_errors=True)
        try:
            return read(to) if self._fetch(f"{self._artifact}/{place}", to) is not None else None
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def _whole_place(self) -> str | None:
        """What `latest.json` says; None where there is none or it cannot be read."""
        if not self._looked:
            self._looked, self._whole = True, self._said()
        return self._whole

    def _said(self) -> str | None:
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
        return place if place in _PLACES else None
