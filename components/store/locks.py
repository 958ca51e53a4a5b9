"""Who may do a piece of work: a file lock, held by a living process and let go by the kernel when it dies.

Looking for a run in MLflow and then creating one is not a claim (two of four racers won when measured); a lock is.
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
    """Holds an exclusive lock on `path` while the block runs.

    Args:
        wait: block until the holder lets go; otherwise raise at once.
        on_wait: called once before waiting.

    Raises:
        BlockingIOError: the lock is held by another process and `wait` is false.
        UserError: the lock's file cannot be made.
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
            f"this lock cannot be taken ({error.strerror})",
            where=str(path),
            remedy="set ROBUSTRAIN_HOME to a folder that you can write to, with space left",
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
    """Whether a living process holds the lock on an existing file."""
    with path.open() as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def holder(path: Path) -> str:
    """The process id written by whoever holds (or last held) the lock; empty where nobody did."""
    return path.read_text().strip() if path.exists() else ""


@contextmanager
def only_run_in(home: Path) -> Iterator[None]:
    """Refuses a second pipeline run in the same home while the first one lives.

    Raises:
        UserError: another process runs a pipeline in `home`.
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
