"""Unpacks tar archives of images, which can come from anybody.

Only regular files and folders are taken. Python's `data` filter alone is not enough: on Python before 3.11.13 and
3.12.11 an archive with a chain of links writes outside its folder in spite of the filter (CVE-2025-4517), so every link
is refused. An archive that would fill the disk is refused before it does.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from components.errors import UserError
from components.files import no_space_as_user_error

MOST_GROWTH = 100
"""Largest ratio of unpacked to packed bytes. Images hardly shrink; a file of zeros shrinks to a thousandth."""
ALWAYS_TAKEN = 1 << 30
"""Unpacked bytes up to which the ratio does not matter."""
_HEADER = 512
"""Bytes that a member counts beside its content: an archive of millions of empty files is a bomb, too."""


def unpack(archive: Path, folder: Path) -> None:
    """Extracts a tar archive into a folder.

    Raises:
        UserError: it is not a complete tar archive, it holds a member that is neither a regular file nor a folder or
            that would end up outside the folder, it grows to more than `MOST_GROWTH` times its size, or the disk has
            too little space.
    """
    try:
        with no_space_as_user_error(folder), tarfile.open(archive) as tar:
            for member in _safe_members(tar, archive, folder):
                tar.extract(member, folder, set_attrs=False, filter="data")
    except tarfile.FilterError as error:
        raise _unsafe(archive, str(error)) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"this is not a complete tar archive ({error})", where=str(archive), remedy="download or pack it again"
        ) from error


def _safe_members(tar: tarfile.TarFile, archive: Path, folder: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the members one by one; each is checked before it is extracted."""
    packed, free, unpacked = archive.stat().st_size, shutil.disk_usage(folder).free, 0
    for member in tar:
        if not (member.isreg() or member.isdir()):
            kind = "link" if member.issym() or member.islnk() else "device"
            raise _unsafe(archive, f"{member.name!r} is a {kind}")
        unpacked += _HEADER + member.size
        if unpacked > max(ALWAYS_TAKEN, MOST_GROWTH * packed):
            raise _unsafe(archive, f"it unpacks to more than {MOST_GROWTH} times its size")
        if unpacked > free:
            raise UserError(
                f"the archive does not fit on the disk, which has {free / 1e9:.1f} GB left",
                where=str(archive),
                remedy="free some space, or set ROBUSTRAIN_HOME to another disk",
            )
        yield member


def _unsafe(archive: Path, why: str) -> UserError:
    return UserError(
        f"the archive is not safe to unpack ({why})",
        where=str(archive),
        remedy="pack the images again, as regular files in folders",
    )
