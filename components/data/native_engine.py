"""The native engine: batches straight from the memory map, decoded by a few threads, a few batches ahead.

NumPy, libjpeg-turbo, OpenCV and Pillow release Python's global lock while they work, so threads are enough. Every batch
is cut into one piece per thread.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.data.beton_reader import BetonFile, Pixels
from components.data.crop import CenterCrop, RandomResizedCrop, draw_flips, random_boxes
from components.data.randomness import sample_keys
from components.data.sampler import Indices

Images = npt.NDArray[Any]
Stream = Generator[tuple[Images, Indices], None, None]
"""Images (B, H, W, 3) of each batch, with its indices, in order."""

PendingBatch = tuple[Images, Indices, list[Future[None]]]
"""A batch whose images are complete when all futures are done."""

DECODED_AHEAD = 3
"""Batches that are decoded before they are needed."""

SMALLEST_PIECE = 1 << 18
"""Fewest output pixels that a thread is given: handing over fewer costs more time than decoding them."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a row of the batch, before heavy augmentation.

    Attributes:
        resolution: pixels of the square output.
        seed: of crops and flips.
        crop: random (training) or centered (evaluation).
        hflip: probability of a horizontal flip.
    """

    resolution: int
    seed: int
    crop: RandomResizedCrop | CenterCrop
    hflip: float


class NativeEngine:
    """Decodes batches of one file.

    Args:
        pool: the threads that decode; the loader shares them with augmentation.
        num_threads: the number of threads in the pool.
    """

    name = "native"

    def __init__(self, file: BetonFile, geometry: Geometry, pool: ThreadPoolExecutor, num_threads: int) -> None:
        # OpenCV's own threads would compete with ours; its setting is for the whole process only.
        cv2.setNumThreads(1)
        self.file, self.geometry, self.pool, self.num_threads = file, geometry, pool, num_threads
        self._block = self._ready_pixels()

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream:
        """Yields the images (uint8, (B, resolution, resolution, 3)) of each batch, with its indices, in order."""
        return in_order((self._start(indices, epoch) for indices in batches), DECODED_AHEAD)

    def _start(self, indices: Indices, epoch: int) -> PendingBatch:
        side = self.geometry.resolution
        images = np.empty((len(indices), side, side, 3), np.uint8)
        futures = [
            self.pool.submit(self._fill, images[piece], indices[piece], epoch)
            for piece in pieces(images, self.num_threads)
        ]
        return images, indices, futures

    def _fill(self, out: Pixels, indices: Indices, epoch: int) -> None:
        crop = self.geometry.crop
        if isinstance(crop, RandomResizedCrop):
            self._fill_cropped(crop, out, indices, epoch)
        elif self._block is not None:
            np.take(self._block, indices, axis=0, out=out)
        else:
            for row, index in enumerate(indices.tolist()):
                out[row] = center_crop(self.file.image(index), self.geometry.resolution, crop.crop_pct)
        if self.geometry.hflip:
            flipped = draw_flips(self.geometry.seed, sample_keys(indices, epoch), self.geometry.hflip)
            out[flipped] = out[flipped, :, ::-1]

    def _fill_cropped(self, crop: RandomResizedCrop, out: Pixels, indices: Indices, epoch: int) -> None:
        file, size = self.file, (self.geometry.resolution, self.geometry.resolution)
        keys = sample_keys(indices, epoch)
        boxes = random_boxes(crop, self.geometry.seed, keys, file.heights[indices], file.widths[indices]).tolist()
        for row, (index, (top, left, height, width)) in enumerate(zip(indices.tolist(), boxes, strict=True)):
            part = file.image(index)[top : top + height, left : left + width]
            out[row] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)

    def _ready_pixels(self) -> Pixels | None:
        """Returns all pixels as one array if no image needs cropping or resizing."""
        crop, side = self.geometry.crop, self.geometry.resolution
        if isinstance(crop, RandomResizedCrop) or crop.crop_pct != 1.0:
            return None
        block = self.file.uniform_pixels()
        return block if block is not None and block.shape[1:3] == (side, side) else None


def center_crop(pixels: Pixels, resolution: int, crop_pct: float) -> Pixels:
    """Resizes the shorter side to floor(resolution / crop_pct), bicubic with antialiasing, and cuts out the centre.

    The same as timm's and torchvision's evaluation transform; uint8 (resolution, resolution, 3).
    """
    target = math.floor(resolution / crop_pct)
    height, width = pixels.shape[:2]
    if min(height, width) != target:
        long = int(target * max(height, width) / min(height, width))
        size = (long, target) if width > height else (target, long)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        height, width = pixels.shape[:2]
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)
    return pixels[top : top + resolution, left : left + resolution]


def pieces(images: Images, num_threads: int) -> list[slice]:
    """Cuts (B, H, W, C) images into at most `num_threads` slices of rows, of at least `SMALLEST_PIECE` pixels each."""
    count, height, width = images.shape[:3]
    parts = max(1, min(num_threads, count * height * width // SMALLEST_PIECE))
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def in_order(started: Iterable[PendingBatch], ahead: int) -> Stream:
    """Yields batches in order as they are finished; starts each one `ahead` batches before it is needed."""
    waiting: deque[PendingBatch] = deque()
    try:
        for batch in started:
            waiting.append(batch)
            if len(waiting) > ahead:
                yield _finish(waiting.popleft())
        while waiting:
            yield _finish(waiting.popleft())
    finally:
        # An abandoned epoch leaves nothing running: work that has not begun is cancelled, the rest is awaited.
        wait([future for _, _, futures in waiting for future in futures if not future.cancel()])


def _finish(batch: PendingBatch) -> tuple[Images, Indices]:
    images, indices, futures = batch
    for future in futures:
        future.result()
    return images, indices
