"""Sizes and sha256 sums of files: what a manifest lists and how it is held against the files.

Says "no space is left" in one way, wherever this room writes files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import UserError

_CHUNK = 1 << 20


class FileDigest(NamedTuple):
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


def digest_file(path: Path) -> FileDigest:
    """Reads the whole file once."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return FileDigest(size, sha.hexdigest())


def files_below(path: Path) -> Iterator[tuple[str, Path]]:
    """(relative POSIX name, path) of each file below a folder, sorted; of a single file: its own name."""
    if path.is_file():
        yield path.name, path
        return
    for item in sorted(path.rglob("*")):
        if item.is_file():
            yield item.relative_to(path).as_posix(), item


def differs(path: Path, expected: FileDigest) -> str:
    """Why `path` is not the file that `expected` describes; an empty string where it is."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected.size:
        return f"has {path.stat().st_size} bytes, its manifest says {expected.size}"
    return "" if digest_file(path).sha256 == expected.sha256 else "has another sha256 than its manifest says"


def write_atomically(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any) -> Path:
    """`value` as sorted, indented JSON, written whole or not at all."""
    return write_atomically(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def space_explained(where: Path) -> Iterator[None]:
    """Turns a full disk (or quota) inside the block into a `UserError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            "no space is left to write this; nothing half-written will be used",
            where=str(where),
            remedy="free some space, or point ROBUSTRAIN_HOME to a larger disk",
        ) from error
