"""Files: atomic writes, sha256 digests, and the message for a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import UserError


class FileDigest(NamedTuple):
    """Size in bytes and sha256 (64 hex digits) of one file."""

    size: int
    sha256: str


def digest_file(path: Path) -> FileDigest:
    """Returns the size and the sha256 of a file, from one pass over its bytes."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(file.tell(), sha256)


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file, 64 hex digits."""
    return digest_file(path).sha256


def mismatch(path: Path, expected: FileDigest) -> str:
    """Returns why `path` is not the file that `expected` describes; an empty string if it is that file."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected.size:
        return f"has {path.stat().st_size} bytes, its manifest says {expected.size}"
    return "" if sha256_file(path) == expected.sha256 else "has another sha256 than its manifest says"


def files_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields (relative POSIX name, path) of each file below a folder, sorted; for a file: its own name and path."""
    if path.is_file():
        yield path.name, path
        return
    for item in sorted(path.rglob("*")):
        if item.is_file():
            yield item.relative_to(path).as_posix(), item


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object], *, fsync: bool = True) -> Path:
    """Writes a file completely or not at all, and returns its path.

    The content goes to `.NAME.RANDOM.part` in the same folder, which is renamed to `path` when it is complete and
    removed if writing fails. Readers see the old file or the new one, also when several processes write at once.

    Args:
        path: the file; missing folders above it are created.
        content: text (written as UTF-8), bytes, or a function that writes a file at the path that it is called with.
        fsync: flush the bytes to the disk before the rename, so that the file is complete after a power failure too.
            Turn it off for files that may be lost, such as progress reports.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        if fsync:
            fsync_path(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any, *, fsync: bool = True) -> Path:
    """Writes `value` atomically as sorted, indented JSON, and returns the path.

    Raises:
        ValueError: `value` contains NaN or an infinity.
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return write_atomically(path, text, fsync=fsync)


def remove_folder(path: Path) -> None:
    """Removes a folder. It loses its name first: an interruption leaves no folder with some of its files.

    A folder that does not exist, and files that cannot be removed, are ignored.
    """
    removed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(path, removed)
    shutil.rmtree(removed, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Flushes a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def no_space_as_user_error(where: Path) -> Iterator[None]:
    """Turns a full disk (or an exhausted quota) inside the block into a `UserError`; other errors pass.

    Args:
        where: named in the message if the operating system's error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            "no space is left to write this; no incomplete file is kept",
            where=str(error.filename or where),
            remedy="free some space, or set ROBUSTRAIN_HOME to a folder on a larger disk",
        ) from error
