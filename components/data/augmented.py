"""Applies heavy augmentation to a stream of batches on the loader's threads, a few batches ahead, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from components.data.augment import Augmentation
from components.data.counter import sample_keys
from components.data.native_engine import Stream, pieces
from components.data.order import Indices

Images = npt.NDArray[Any]

AHEAD = 2
"""Batches that are augmented before they are asked for."""


def augmented(
    stream: Stream, augment: Augmentation | None, epoch: int, pool: ThreadPoolExecutor, threads: int
) -> Generator[tuple[Images, Indices], None, None]:
    """The batches of `stream` after `augment` (unchanged when None)."""
    if augment is None:
        yield from stream
        return
    waiting: deque[tuple[Images, Indices, list[Future[None]]]] = deque()
    try:
        for images, indices in stream:
            waiting.append(_started(images, indices, augment, epoch, pool, threads))
            if len(waiting) > AHEAD:
                yield _finished(waiting.popleft())
        while waiting:
            yield _finished(waiting.popleft())
    finally:
        wait([future for _, _, futures in waiting for future in futures if not future.cancel()])


def _started(
    images: Images, indices: Indices, augment: Augmentation, epoch: int, pool: ThreadPoolExecutor, threads: int
) -> tuple[Images, Indices, list[Future[None]]]:
    out = np.empty(images.shape, augment.dtype)
    keys = sample_keys(indices, epoch)
    futures = [
        pool.submit(augment.fill_batch, out[piece], images[piece], keys[piece]) for piece in pieces(images, threads)
    ]
    return out, indices, futures


def _finished(batch: tuple[Images, Indices, list[Future[None]]]) -> tuple[Images, Indices]:
    images, indices, futures = batch
    for future in futures:
        future.result()
    return images, indices
