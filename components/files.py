"""Files: atomic writes, sha256 digests, and the message for a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
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


_HEAD_BYTES = 4096
"""Where a file's kind is looked for, see `write_output`."""


def write_output(path: Path, content: str, mark: str) -> Path:
    """Writes a file at a path that a person gave, and returns the path.

    Replaces only an empty file or an earlier file of the same kind. A link is followed, and the file that it points to
    is written; a device or a pipe gets the content and stays what it is.

    Args:
        path: the file; `~` is expanded and missing folders above it are created.
        content: the text, written as UTF-8.
        mark: text that begins every file of this kind, within its first 4 KiB.

    Raises:
        UserError: it is a folder or another file, or it cannot be written.
    """
    where = str(path)
    try:
        path = path.expanduser()
        if path.is_dir():
            raise UserError("this is a folder", where=where, remedy="name a file in it")
        if path.exists() and not path.is_file():
            path.write_text(content, encoding="utf-8")
            return path
        if path.is_file() and not _may_be_replaced(path, mark):
            what = "there is another file of this name, which is not replaced"
            raise UserError(what, where=where, remedy="name another file, or remove this one first")
        write_atomically(path.resolve(), content)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, or no home folder for `~`
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"this file cannot be written ({cause})", where=where, remedy="name another file") from error
    return path


def _may_be_replaced(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or mark.encode() in head


def write_json(path: Path, value: Any, *, fsync: bool = True) -> Path:
    """Writes `value` atomically as sorted, indented JSON, and returns the path.

    Raises:
        ValueError: `value` contains NaN or an infinity.
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return write_atomically(path, text, fsync=fsync)


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
