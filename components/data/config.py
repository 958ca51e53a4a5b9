"""The configuration of an `encode` stage, and the digest of the images that it would read.

Planning a run needs both and must not wait for NumPy, so this module imports only pydantic and the standard library.
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

from pydantic import Field, field_validator

from components.config_model import ConfigModel
from components.data.layout import is_image, read_layout
from components.errors import UserError
from components.files import sha256_file, write_json
from components.fingerprint import NO_FINGERPRINT

BUILT_IN: dict[str, str] = {"digits": "digits/1", "shapes": "shapes/2"}
"""Built-in data set -> version of the code that draws it; raised when its pixels or its split change."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of files, in lower or upper case, that are read as an archive of a folder in ImageNet layout."""

S3 = "s3://"

ListPrefix = Callable[[str], Iterable[tuple[str, int, str]]]
"""Lists (name below the address, size in bytes, ETag) of every object below an `s3://` address."""


class EncodeConfig(ConfigModel):
    """Where the images are and how they are stored in the `.beton` file.

    The source is `digits`, `shapes`, a folder in ImageNet layout (`train/<class>/*` and, if there, `val/<class>/*`),
    a tar archive of such a folder, or an `s3://bucket/prefix` that holds one.

    Neither the location of the images nor the name of the data set is part of the fingerprint; only their content is.
    So a set that was moved or renamed is not encoded again, and its results keep the name it was first encoded with.
    """

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
    max_short_side: int = Field(
        default=256,
        ge=8,
        le=4096,
        description="pixels; an image whose shorter side is longer is shrunk to it, none is enlarged",
    )
    mode: Literal["jpg", "raw"] = Field(
        default="jpg", description="raw: exact pixels, fast to read, about 10 times the bytes of jpg"
    )
    quality: int = Field(default=90, ge=1, le=100, description="JPEG quality on OpenCV's scale; mode jpg only")
    keep_jpeg: bool = Field(
        default=False, description="store a source JPEG that needs no shrinking unchanged; mode jpg only"
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of each class that becomes val if the source has no val"
    )
    max_train_images: int | None = Field(
        default=None, ge=1, description="keep at most this many train images, evenly over the classes"
    )
    max_val_images: int | None = Field(
        default=None, ge=1, description="keep at most this many val images, evenly over the classes"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the split and of the choice of images")
    page_size: int = Field(
        default=8 << 20, description="bytes of a page of the .beton file; a power of two from 2 MiB to 2 GiB"
    )
    num_workers: int = Field(
        default=0,
        ge=0,
        json_schema_extra=NO_FINGERPRINT,
        description="encoding processes; 0 chooses by the number of images and cores",
    )

    @field_validator("page_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1) or not 2 << 20 <= value <= 2 << 30:
            raise ValueError("page_size must be a power of two from 2097152 (2 MiB) to 2147483648 (2 GiB)")
        return value

    @property
    def dataset(self) -> str:
        """Name of the data set in tables."""
        return self.name or _last_part(self.source)


def _last_part(source: str) -> str:
    name = source.rstrip("/").rsplit("/", 1)[-1]
    ending = next((ending for ending in TAR_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def source_digest(config: EncodeConfig, *, cache: Path | None = None, list_prefix: ListPrefix | None = None) -> str:
    """Returns a digest of the source's images, one short string for the fingerprint.

    For a built-in set it is its version, for a folder the sha256 over names and contents of the images that an `encode`
    stage reads, for an archive the sha256 of its content, and for an `s3://` address the sha256 over the names, sizes
    and ETags of its images. Files that are not read, such as a README or `.DS_Store`, do not change it.

    Args:
        cache: a folder that keeps the digests of folders and archives, so that an unchanged source is not read twice.
        list_prefix: lists the objects below an `s3://` address.

    Raises:
        UserError: the source does not exist or cannot be read, its layout is none that `read_layout` takes, or it is on
            S3 and `list_prefix` is not given.
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
    return _digest_of_files(root, list(_files_read(root, config.source)), cache)


def _files_read(root: Path, source: str) -> Iterator[tuple[str, Path]]:
    """Yields (name below `root`, path) of the archive `root`, or of the images below the folder `root`."""
    if root.is_file():
        yield "", root
        return
    images = read_layout(names_below(root), source).images.values()
    for name in sorted((name for split in images for _, name in split), key=lambda name: name.split("/")):
        yield _require_utf8(name, root), root / name


def source_classes(config: EncodeConfig) -> tuple[str, ...] | None:
    """Checks a source before anything runs, and returns its classes.

    Returns:
        The class names of a folder. None for built-in sets, which have ten classes or more, and for archives and
        `s3://` addresses, whose images are only known after they have been unpacked or fetched.

    Raises:
        UserError: it is no archive, or the folder's layout is none that `components.data.layout.read_layout` takes.
    """
    from tarfile import is_tarfile

    if config.source in BUILT_IN or config.source.startswith(S3):
        return None
    root = Path(config.source).expanduser()
    if root.is_dir():
        return read_layout(names_below(root), config.source).classes
    if root.is_file() and not (root.name.lower().endswith(TAR_ENDINGS) and is_tarfile(root)):
        what, remedy = "this is no folder and no tar archive", f"give a folder, or an archive ({' '.join(TAR_ENDINGS)})"
        raise UserError(what, where="source", value=config.source, remedy=remedy)
    return None


def names_below(root: Path) -> Iterator[str]:
    """Yields the POSIX paths below a folder of all files in it, and of its folders with a slash at the end.

    Raises:
        UserError: a folder cannot be read, or links lead in a circle.
    """
    for folder, names, files in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        below = Path(folder).relative_to(root)
        for name in names:
            _refuse_loop(Path(folder, name))
            yield f"{(below / name).as_posix()}/"
        yield from ((below / file).as_posix() for file in files)


def _s3_digest(source: str, list_prefix: ListPrefix | None) -> str:
    if list_prefix is None:
        raise UserError("the bucket cannot be listed here", where="source", value=source, remedy="use a folder")
    sha = hashlib.sha256()
    for name, size, etag in sorted(item for item in list_prefix(source) if is_image(item[0])):
        sha.update(f"{name}\0{size}\0{etag}\n".encode())
    return sha.hexdigest()


NamedFiles = list[tuple[str, Path]]
"""(name in the digest, path) of each file."""


def _digest_of_files(root: Path, files: NamedFiles, cache: Path | None) -> str:
    """Returns the sha256 over names and contents of files.

    Args:
        root: the folder that holds them.
        cache: a folder that keeps digests by path, names, sizes, inodes and times. If it cannot be written, the files
            are read again next time.

    Raises:
        UserError: a file cannot be read.
    """
    state = hashlib.sha256(os.fsencode(root.resolve()) + b"\n")
    for name, path in files:
        stats = _stat(path)
        times = f"{stats.st_mtime_ns}\0{stats.st_ctime_ns}"
        state.update(f"{name}\0{stats.st_dev}\0{stats.st_ino}\0{stats.st_size}\0{times}\n".encode())
    cached = cache / "source-digests" / f"{state.hexdigest()}.json" if cache else None
    known = _read_cached(cached) if cached else ""
    if known:
        return known
    digest = _content_digest(files)
    if cached:
        with contextlib.suppress(OSError):
            write_json(cached, {"source": str(root), "files": len(files), "sha256": digest}, fsync=False)
    return digest


def _read_cached(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text())["sha256"])
    return ""


def _refuse_loop(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in (folder.parent.resolve(), *folder.parent.resolve().parents):
        raise UserError("this link leads back to a folder that contains it", where=str(folder), remedy="remove it")


def _require_utf8(name: str, root: Path) -> str:
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
        _raise_unreadable(error)
    if not stat.S_ISREG(found.st_mode):
        raise UserError("this is not a regular file", where=str(path), remedy="remove it")
    return found


def _raise_unreadable(error: OSError) -> NoReturn:
    where = str(error.filename or "")
    if where and os.path.islink(where):
        raise UserError("the target of this link does not exist", where=where, remedy="repair or remove it") from error
    raise UserError(f"it cannot be read ({error.strerror})", where=where, remedy="repair or remove it") from error


def _content_digest(files: NamedFiles) -> str:
    whole = hashlib.sha256()
    for name, path in files:
        try:
            whole.update(f"{name}\0{sha256_file(path)}\n".encode())
        except OSError as error:
            _raise_unreadable(error)
    return whole.hexdigest()
