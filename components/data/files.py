"""The files of a source and the digest of their names and contents, kept so that an unchanged source is not read twice.

As light as `components.data.config`: planning a run needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from components.errors import UserError

Named = list[tuple[str, Path]]


def digest_of_files(root: Path, cache: Path | None) -> str:
    """sha256 over the names and contents of all files below the folder `root`, or over the content of the file `root`.

    Args:
        cache: a folder that keeps digests; one that cannot be written only costs reading again.

    Raises:
        UserError: a file or folder cannot be read, or a name is not UTF-8.
    """
    files = list(_files(root))
    seen = hashlib.sha256(os.fsencode(root.resolve()) + b"\n")
    for name, path in files:
        at = _stat(path)
        times = f"{at.st_mtime_ns}\0{at.st_ctime_ns}"
        seen.update(f"{name}\0{at.st_dev}\0{at.st_ino}\0{at.st_size}\0{times}\n".encode())
    kept = cache / "source-digests" / f"{seen.hexdigest()}.json" if cache else None
    known = _read(kept) if kept else ""
    if known:
        return known
    digest = _content_digest(files)
    if kept:
        _write(kept, {"source": str(root), "files": len(files), "sha256": digest})
    return digest


def _read(kept: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(kept.read_text())["sha256"])
    return ""


def _write(kept: Path, value: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(value))
        os.replace(part, kept)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(name below `root`, path) of every file, sorted within each folder; links are followed."""
    if root.is_file():
        yield "", root
        return
    for folder, names, files in os.walk(root, followlinks=True, onerror=_unreadable):
        names.sort()
        for name in names:
            _refuse_loop(Path(folder, name))
        for file in sorted(files):
            path = Path(folder, file)
            yield _plain(path.relative_to(root).as_posix(), root), path


def _refuse_loop(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in (folder.parent.resolve(), *folder.parent.resolve().parents):
        raise UserError("this link leads back to a folder that it lies in", where=str(folder), remedy="remove it")


def _plain(name: str, root: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            "this file's name is not UTF-8", where=str(root), value=name, remedy="rename the file"
        ) from None
    return name


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except OSError as error:
        _unreadable(error)
    if not stat.S_ISREG(found.st_mode):
        raise UserError("this is no ordinary file", where=str(path), remedy="remove it")
    return found


def _unreadable(error: OSError) -> NoReturn:
    where = str(error.filename or "")
    if where and os.path.islink(where):
        raise UserError("this link leads nowhere", where=where, remedy="mend or remove it") from error
    raise UserError(f"it cannot be read ({error.strerror})", where=where, remedy="mend or remove it") from error


def _content_digest(files: Named) -> str:
    whole = hashlib.sha256()
    for name, path in files:
        try:
            with path.open("rb") as file:
                whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            _unreadable(error)
    return whole.hexdigest()
