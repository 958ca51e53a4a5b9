"""Says "no space is left" in one way, wherever this room writes files."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from components.errors import UserError

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
