"""What an `encode` stage is told, and the digest of the images it would read.

Kept light (pydantic and the standard library): planning a run needs both and must not wait for NumPy.

The files of a source and the digest of their names and contents, kept so that an unchanged source is not read twice.

As light as `components.data.config`: planning a run needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, field_validator

from components.errors import UserError
from components.fingerprint import NO_FINGERPRINT

# MERGED

BUILT_IN: dict[str, str] = {"digits": "digits/1", "shapes": "shapes/2"}
"""Built-in sets -> version of the code that makes them; raise it when their pixels or their split change."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""File names that are read as an archive of an ImageNet-layout folder."""

S3 = "s3://"

ListPrefix = Callable[[str], Iterable[tuple[str, int, str]]]
"""Lists (name below the address, size, ETag) of every object below an `s3://` address."""


class EncodeConfig(BaseModel):
    """Where the images are and how they are stored in the `.beton` file.

    The source is `digits`, `shapes`, a folder in ImageNet layout (`train/<class>/*` and, if there, `val/<class>/*`),
    a tar archive of such a folder, or an `s3://bucket/prefix` that holds one.

    What counts is the images: neither the place they lie in nor the name of the set is part of the fingerprint. So a
    set that was moved or renamed is not encoded again, and results go on under the name it was encoded with first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        min_length=1,
        json_schema_extra=NO_FINGERPRINT,  # `source_digest` stands for it
        description="digits | shapes | folder | tar archive | s3://bucket/prefix",
    )
    name: str | None = Field(
        default=None,
        json_schema_extra=NO_FINGERPRINT,
        description="name of the data set in tables; default: the source's last part",
    )
    side: int = Field(
        default=256, ge=8, le=4096, description="pixels; a longer shorter side is shrunk to it, never enlarged"
    )
    mode: Literal["jpg", "raw"] = Field(
        default="jpg", description="raw: exact pixels, fast to read, about 10 times the bytes"
    )
    quality: int = Field(default=90, ge=1, le=100, description="JPEG quality (OpenCV's scale), mode jpg only")
    keep_jpeg: bool = Field(
        default=False, description="store a source JPEG that needs no shrinking as it is, mode jpg only"
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of each class that becomes val where none is given"
    )
    limit_train: int | None = Field(
        default=None, ge=1, description="keep about this many train images, evenly over classes"
    )
    limit_val: int | None = Field(
        default=None, ge=1, description="keep about this many val images, evenly over classes"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the split and of the limits")
    page_size: int = Field(
        default=8 << 20, description="bytes of a page of the file; a power of two from 2 MiB to 2 GiB"
    )
    workers: int = Field(
        default=0,
        ge=0,
        json_schema_extra=NO_FINGERPRINT,
        description="encoding processes; 0: as many as the set is worth",
    )

    @field_validator("page_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1) or not 2 << 20 <= value <= 2 << 30:
            raise ValueError("page_size has to be a power of two from 2097152 (2 MiB) to 2147483648 (2 GiB)")
        return value

    @property
    def dataset(self) -> str:
        """The name shown in tables."""
        return self.name or _last_part(self.source)


def _last_part(source: str) -> str:
    name = source.rstrip("/").rsplit("/", 1)[-1]
    for ending in TAR_ENDINGS:
        name = name.removesuffix(ending)
    return name


def source_digest(config: EncodeConfig, *, cache: Path | None = None, list_prefix: ListPrefix | None = None) -> str:
    """What the source's bytes are, as one short string for the fingerprint.

    A built-in set: its version. A folder: sha256 over the names and contents of all its files; an archive: its content.
    `cache` (a folder) keeps that by place, names, sizes, inodes and times, so that an unchanged source is not read
    twice. An `s3://` address: sha256 over names, sizes and ETags as `list_prefix` reports them.

    Raises:
        UserError: the source does not exist or cannot be read, or it is on S3 and `list_prefix` is not given.
    """
    if config.source in BUILT_IN:
        return BUILT_IN[config.source]
    if config.source.startswith(S3):
        return _s3_digest(config.source, list_prefix)
    root = Path(config.source).expanduser()
    if not root.exists():
        known = ", ".join(sorted(BUILT_IN))
        raise UserError(
            "there is no such folder, archive or built-in set",
            where="source",
            value=config.source,
            remedy=f"name an existing folder or archive, an s3:// address, or one of: {known}",
        )
    return digest_of_files(root, cache)


def _s3_digest(source: str, list_prefix: ListPrefix | None) -> str:
    if list_prefix is None:
        raise UserError("the bucket cannot be listed from here", where="source", value=source, remedy="use a folder")
    sha = hashlib.sha256()
    for name, size, etag in sorted(list_prefix(source)):
        sha.update(f"{name}\0{size}\0{etag}\n".encode())
    return sha.hexdigest()


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
