"""Encodes one split: several processes compress, one writer appends in order, so the bytes never depend on how many."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

from components.data.beton_format import DEFAULT_PAGE_SIZE, EncodedImage
from components.data.beton_writer import BetonWriter
from components.data.encode_image import EncodeSettings, ImageItem, Unreadable, encode_chunk
from components.errors import UserError
from components.process import stage_cores

CHUNK = 32
"""Images in one piece of work."""

WORTH_A_PROCESS = 2500
"""Below this many images per process, starting one costs more than it saves."""

Progress = Callable[[int, int], None]
Encoded = list[EncodedImage] | Unreadable


def encode_split(
    items: Sequence[ImageItem],
    path: Path,
    settings: EncodeSettings,
    *,
    page_size: int = DEFAULT_PAGE_SIZE,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes the images, in the order given, to a `.beton` file.

    Args:
        items: at least one image.
        path: the finished file; it appears whole or not at all.
        workers: encoding processes; 1 works in this process, 0: as many as the stage's cores and the set are worth.
        progress: called with (images done, images in all).

    Raises:
        UserError: an image cannot be read (it is named), an encoding process died, or no space is left.
    """
    count = workers or max(1, min(stage_cores(), len(items) // WORTH_A_PROCESS))
    chunks = [list(items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
    encoded = _in_processes(chunks, settings, count) if count > 1 else _here(chunks, settings)
    done = 0
    with closing(encoded), BetonWriter(path, len(items), page_size=page_size) as writer:
        for chunk in encoded:
            for sample in _readable(chunk):
                writer.add(sample)
            done += len(chunk)
            progress(done, len(items))


def _readable(chunk: Encoded) -> list[EncodedImage]:
    if isinstance(chunk, Unreadable):
        raise UserError(
            f"this image cannot be read ({chunk.cause})", where=chunk.path, remedy="mend, replace or remove the file"
        )
    return chunk


def _here(chunks: Iterable[list[ImageItem]], settings: EncodeSettings) -> Generator[Encoded, None, None]:
    for chunk in chunks:
        yield encode_chunk(chunk, settings)


def _in_processes(
    chunks: Iterable[list[ImageItem]], settings: EncodeSettings, count: int
) -> Generator[Encoded, None, None]:
    """Results in the order of the chunks; at most 4 chunks a process are under way or wait to be written."""
    # Spawned, not forked: this process may hold threads (torch, numba, MLflow) that do not survive a fork.
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_prepare_encoder, initargs=(os.getpid(),))
    waiting: deque[Future[Encoded]] = deque()
    rest = iter(chunks)
    try:
        for chunk in itertools.islice(rest, 4 * count):
            waiting.append(pool.submit(encode_chunk, chunk, settings))
        while waiting:
            yield waiting.popleft().result()
            for chunk in itertools.islice(rest, 1):
                waiting.append(pool.submit(encode_chunk, chunk, settings))
    except BrokenProcessPool as error:
        raise UserError(
            "an encoding process was killed (often: out of memory)",
            where="encode",
            remedy="start it again with fewer `workers`; nothing half-written was kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_encoder(parent: int) -> None:
    """In a new encoding process: Ctrl-C is the parent's to handle, and without a parent there is nothing to do."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
