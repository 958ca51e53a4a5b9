"""Copies of checkpoints in the run's artifacts, for a machine whose disk is new.

Two places, `a` and `b`, take turns, and `latest.json` says which of them is whole. It is written last, and the next
copy always goes to the other place: a copy that is cut off, in this life or a later one, leaves the one before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from components.store.digests import write_json
from components.train.checkpoint import Snapshot

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
