"""The native engine: batches straight from the memory map, decoded by a few threads, a few batches ahead.

NumPy, libjpeg-turbo, OpenCV and Pillow let go of Python's lock while they work, so threads are enough; every batch is
cut into one piece a thread.

Applies heavy augmentation to a stream of batches on the loader's threads, a few batches ahead, in order.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.data.augment import Augmentation
from components.data.beton_reader import BetonFile
from components.data.crop import CenterCrop, RandomCrop, flips, random_boxes
from components.data.randomness import sample_keys
from components.data.sampler import Indices

Pixels = npt.NDArray[np.uint8]
Stream = Generator[tuple[Pixels, Indices], None, None]

AHEAD = 3
"""Batches that are decoded before they are asked for."""

SMALLEST_PIECE = 1 << 18
"""Output pixels that a thread takes at least: handing over fewer costs more than decoding them."""


@dataclass(frozen=True)
class Geometry:
    """What happens to an image between the file and the batch, but for heavy augmentation."""

    resolution: int
    seed: int
    crop: RandomCrop | CenterCrop
    flip: float


class NativeEngine:
    """Decodes batches of one file.

    Args:
        pool: the threads that decode; shared with whatever else the loader does.
        threads: how many they are.
    """

    name = "native"

    def __init__(self, file: BetonFile, geometry: Geometry, pool: ThreadPoolExecutor, threads: int) -> None:
        # OpenCV's own threads would compete with ours; it has no setting for less than the whole process.
        cv2.setNumThreads(1)
        self.file, self.geometry, self.pool, self.threads = file, geometry, pool, threads
        self._block = self._identity_block()

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream:
        """The images (uint8, (B, resolution, resolution, 3)) of each batch, with its indices, in order."""
        waiting: deque[tuple[Pixels, Indices, list[Future[None]]]] = deque()
        rest = iter(batches)
        try:
            for indices in rest:
                waiting.append(self._started(indices, epoch))
                if len(waiting) > AHEAD:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            # An abandoned epoch leaves nothing running: what has not begun is cancelled, the rest awaited.
            left = [future for _, _, futures in waiting for future in futures if not future.cancel()]
            wait(left)

    def _started(self, indices: Indices, epoch: int) -> tuple[Pixels, Indices, list[Future[None]]]:
        side = self.geometry.resolution
        images = np.empty((len(indices), side, side, 3), np.uint8)
        futures = [
            self.pool.submit(self._fill, images[piece], indices[piece], epoch) for piece in pieces(images, self.threads)
        ]
        return images, indices, futures

    def _fill(self, out: Pixels, indices: Indices, epoch: int) -> None:
        crop = self.geometry.crop
        if isinstance(crop, RandomCrop):
            self._fill_cropped(crop, out, indices, epoch)
        elif self._block is not None:
            np.take(self._block, indices, axis=0, out=out)
        else:
            for row, index in enumerate(indices.tolist()):
                out[row] = centre(self.file.image(index), self.geometry.resolution, crop.ratio)
        if self.geometry.flip:
            mirrored = flips(self.geometry.seed, sample_keys(indices, epoch), self.geometry.flip)
            out[mirrored] = out[mirrored, :, ::-1]

    def _fill_cropped(self, crop: RandomCrop, out: Pixels, indices: Indices, epoch: int) -> None:
        file, size = self.file, (self.geometry.resolution, self.geometry.resolution)
        keys = sample_keys(indices, epoch)
        boxes = random_boxes(crop, self.geometry.seed, keys, file.heights[indices], file.widths[indices]).tolist()
        for row, (index, (top, left, height, width)) in enumerate(zip(indices.tolist(), boxes, strict=True)):
            part = file.image(index)[top : top + height, left : left + width]
            out[row] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)

    def _identity_block(self) -> Pixels | None:
        """All pixels as one array where nothing has to be cropped or resized."""
        crop, side = self.geometry.crop, self.geometry.resolution
        if isinstance(crop, RandomCrop) or crop.ratio != 1.0:
            return None
        block = self.file.uniform_pixels()
        return block if block is not None and block.shape[1:3] == (side, side) else None


def centre(pixels: Pixels, resolution: int, ratio: float) -> Pixels:
    """Shorter side to floor(resolution / ratio), bicubic with antialiasing, then the middle (as timm evaluates)."""
    target = math.floor(resolution / ratio)
    height, width = pixels.shape[:2]
    if min(height, width) != target:
        long = int(target * max(height, width) / min(height, width))
        size = (long, target) if width > height else (target, long)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        height, width = pixels.shape[:2]
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)
    return pixels[top : top + resolution, left : left + resolution]


def pieces(images: npt.NDArray[Any], threads: int) -> list[slice]:
    """The rows of (B, H, W, C) images as at most `threads` slices of at least `SMALLEST_PIECE` pixels."""
    count, height, width = images.shape[:3]
    parts = max(1, min(threads, count * height * width // SMALLEST_PIECE))
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _finished(batch: tuple[Pixels, Indices, list[Future[None]]]) -> tuple[Pixels, Indices]:
    images, indices, futures = batch
    for future in futures:
        future.result()
    return images, indices


# MERGED

Images = npt.NDArray[Any]

AUGMENTED_AHEAD = 2
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
            if len(waiting) > AUGMENTED_AHEAD:
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
