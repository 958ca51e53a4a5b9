"""Unpacks a tar archive of images, refusing members that would land outside the target folder."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from pathlib import Path

from components.data.space import space_explained
from components.errors import UserError


def unpack(archive: Path, folder: Path) -> None:
    """Extracts the regular files of `archive` into `folder` (Python's `data` filter: no links out, no devices).

    Raises:
        UserError: it is no whole tar archive, it holds an unsafe member, or no space is left.
    """
    try:
        with space_explained(folder), tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(
            f"the archive holds an unsafe member ({error})", where=str(archive), remedy="pack it again without it"
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"this is no whole tar archive ({error})", where=str(archive), remedy="fetch or pack it again"
        ) from error
