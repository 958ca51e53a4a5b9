"""File locks: held by a living process, and released by the kernel when it dies.

A lock decides which process does a piece of work. Searching for a run in MLflow and then creating one does not: two of
four processes that raced did both (measured).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from components.errors import UserError


@contextmanager
def file_lock(path: Path, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` while the block runs.

    Args:
        wait: wait until the holder releases it; otherwise raise at once.
        on_wait: called once before the waiting begins.

    Raises:
        BlockingIOError: the lock is held by another process and `wait` is false.
        UserError: the lock file cannot be created.
    """
    with _opened(path) as file:
        _lock(file.fileno(), wait, on_wait)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise UserError(
            f"this lock file cannot be created ({error.strerror})",
            where=str(path),
            remedy="set ROBUSTRAIN_HOME to a writable folder with free space",
        ) from error


def _lock(descriptor: int, wait: bool, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if on_wait:
            on_wait()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.2)


def is_held(path: Path) -> bool:
    """Returns whether a living process holds the lock on an existing file."""
    with path.open() as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def holder(path: Path) -> str:
    """Returns the id of the process that holds, or last held, the lock; an empty string if there was none."""
    return path.read_text().strip() if path.exists() else ""


@contextmanager
def only_run_in(home: Path) -> Iterator[None]:
    """Prevents a second pipeline run in the same home while the block runs.

    Raises:
        UserError: another process is running a pipeline in `home`.
    """
    path = home / "run.lock"
    try:
        with file_lock(path, wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"process {holder(path) or 'unknown'} is already running a pipeline here",
            where=str(home),
            remedy="wait for it to end, or set ROBUSTRAIN_HOME to another folder",
        ) from None
