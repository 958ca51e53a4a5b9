"""Remembers which large files were held against their sha256, so that an unchanged one is not read again and again.

A file counts as unchanged while its size, inode and times are. Only the decision to reuse a stage trusts that; whoever
reads the file holds it against its sha256 each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from components.store.digests import FileDigest, differs, write_json


class Verified:
    """Notes in a folder, one small file for each large one.

    Args:
        folder: may be lost at any time; then files are read once more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def differs(self, path: Path, expected: FileDigest) -> str:
        """As `digests.differs`, without reading a file that has not changed since it was noted."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._note(path).read_text()) == _seen(path, expected):
                return ""
        problem = differs(path, expected)
        if not problem:
            self.note(path, expected)
        return problem

    def note(self, path: Path, digest: FileDigest) -> None:
        """The file has just been found to have this digest."""
        with contextlib.suppress(OSError):
            write_json(self._note(path), _seen(path, digest))

    def forget(self, path: Path) -> None:
        """The file was found damaged."""
        with contextlib.suppress(OSError):
            self._note(path).unlink(missing_ok=True)

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"


def _seen(path: Path, digest: FileDigest) -> dict[str, object]:
    stat = path.stat()
    facts = {"device": stat.st_dev, "inode": stat.st_ino, "changed": stat.st_ctime_ns, "written": stat.st_mtime_ns}
    return {**facts, "size": stat.st_size, "sha256": digest.sha256}
