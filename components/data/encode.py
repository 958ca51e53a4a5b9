"""Encodes images: several processes decode, shrink and compress them; one writer appends the results in order.

The encoding of an image is a pure function of the file's bytes and the settings, so the number of processes never
changes the encoded file.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from components.data.beton_writer import (
    DEFAULT_PAGE_SIZE,
    MAX_IMAGE_SIDE,
    MODE_JPG,
    MODE_RAW,
    BetonWriter,
    EncodedImage,
)
from components.data.jpeg import decode_jpeg, jpeg_size
from components.errors import UserError
from components.process import stage_cores

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

CHUNK = 32
"""Images in one piece of work."""

WORTH_A_PROCESS = 2500
"""Images per process below which starting the process costs more time than it saves."""

_WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}
"""Modes of Pillow whose values do not define which value is black and which is white."""

Progress = Callable[[int, int], None]


class ImageItem(NamedTuple):
    """One image of a source and the number of its class."""

    path: str
    label: int


@dataclass(frozen=True)
class EncodeSettings:
    """How images are stored; the fields are those of `EncodeConfig`."""

    max_short_side: int
    mode: Literal["jpg", "raw"]
    quality: int = 90
    keep_jpeg: bool = False


class Unreadable(NamedTuple):
    """An image that could not be read, as a value, because exceptions lose their details between processes."""

    path: str
    cause: str


EncodedChunk = list[EncodedImage | Unreadable]
"""The results of some images, in order."""

NAMED_IMAGES = 20
"""Unreadable images that an error names; the log names all."""


class UnreadableImages(UserError):
    """All images of one or more splits that cannot be read.

    Args:
        images: at least one.
    """

    def __init__(self, images: Sequence[Unreadable]) -> None:
        self.images = tuple(images)
        remedy = "repair, replace or remove the file" + ("s" if len(images) > 1 else "")
        if len(images) == 1:
            super().__init__(f"this image cannot be read ({images[0].cause})", where=images[0].path, remedy=remedy)
            return
        named = "; ".join(f"{path} ({cause})" for path, cause in images[:NAMED_IMAGES])
        more = len(images) - NAMED_IMAGES
        rest = f"; and {more} more, which the log names" if more > 0 else ""
        super().__init__(f"{len(images)} images cannot be read: {named}{rest}", remedy=remedy)


def encode_split(
    items: Sequence[ImageItem],
    path: Path,
    settings: EncodeSettings,
    *,
    page_size: int = DEFAULT_PAGE_SIZE,
    num_workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes images, in the order given, to a `.beton` file.

    Args:
        items: at least one image.
        path: the finished file; it appears only when it is complete.
        num_workers: encoding processes. 1 encodes in this process; 0 chooses by the stage's cores and the number of
            images.
        progress: called with (images done, images in all).

    Raises:
        UnreadableImages: images cannot be read; the whole split was looked through for them, and no file is written.
        UserError: an encoding process died, or no space is left.
    """
    count = num_workers or max(1, min(stage_cores(), len(items) // WORTH_A_PROCESS))
    chunks = [list(items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
    encoded = _encode_in_processes(chunks, settings, count) if count > 1 else _encode_here(chunks, settings)
    done, unreadable = 0, []
    with closing(encoded), BetonWriter(path, len(items), page_size=page_size) as writer:
        for chunk in encoded:
            for sample in chunk:
                if isinstance(sample, Unreadable):
                    _log.error("%s cannot be read (%s)", *sample)
                    unreadable.append(sample)
                elif not unreadable:
                    writer.add(sample)
            done += len(chunk)
            progress(done, len(items))
        if unreadable:
            raise UnreadableImages(unreadable)


def _encode_here(chunks: Iterable[list[ImageItem]], settings: EncodeSettings) -> Generator[EncodedChunk, None, None]:
    for chunk in chunks:
        yield encode_chunk(chunk, settings)


def _encode_in_processes(
    chunks: Iterable[list[ImageItem]], settings: EncodeSettings, count: int
) -> Generator[EncodedChunk, None, None]:
    """Yields results in the order of the chunks; at most 4 chunks per process are in progress or not yet written."""
    # Spawned, not forked: this process may hold threads (torch, numba, MLflow) that do not survive a fork.
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_prepare_worker, initargs=(os.getpid(),))
    waiting: deque[Future[EncodedChunk]] = deque()
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
            "an encoding process was killed (often because memory ran out)",
            where="encode",
            remedy="start it again with fewer `num_workers`; no incomplete file was kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker(parent: int) -> None:
    """Sets up an encoding process: it leaves Ctrl-C to the parent and ends when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def exit_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def encode_chunk(items: list[ImageItem], settings: EncodeSettings) -> EncodedChunk:
    """Encodes some images in order; one that cannot be read becomes an `Unreadable`."""
    encoded: EncodedChunk = []
    for item in items:
        try:
            encoded.append(encode_file(item, settings))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, cv2.error) as error:
            encoded.append(Unreadable(item.path, _cause(error)))
    return encoded


def _cause(error: Exception) -> str:
    # Pillow's text names an object in memory.
    text = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{type(error).__name__}: {text}"


def encode_file(item: ImageItem, settings: EncodeSettings) -> EncodedImage:
    """Encodes one image file.

    Raises:
        OSError, ValueError: it cannot be read as an image, or is longer than the format allows.
    """
    content = Path(item.path).read_bytes()
    if not content:
        raise ValueError("the file is empty")
    if settings.keep_jpeg and settings.mode == "jpg":
        kept = _keep_jpeg(content, item.label, settings.max_short_side)
        if kept:
            return kept
    return encode_pixels(shrink(read_rgb(content), settings.max_short_side), item.label, settings)


def encode_pixels(pixels: Pixels, label: int, settings: EncodeSettings) -> EncodedImage:
    """Encodes RGB pixels, uint8 (height, width, 3); JPEGs are compressed by OpenCV, as FFCV does it."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_IMAGE_SIDE:
        raise ValueError(f"{width}x{height} pixels; a side of a stored image has at most {MAX_IMAGE_SIDE}")
    if settings.mode == "raw":
        return EncodedImage(MODE_RAW, width, height, np.ascontiguousarray(pixels).tobytes(), label)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    good, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    if not good:
        raise ValueError("OpenCV cannot compress it")
    return EncodedImage(MODE_JPG, width, height, data.tobytes(), label)


def read_rgb(content: bytes) -> Pixels:
    """Returns the pixels of an image file, uint8 (height, width, 3) RGB.

    Grey of 16 bits is scaled to 8 bits. The EXIF orientation is not applied, as usual for ImageNet.

    Raises:
        OSError, ValueError: it cannot be read as an image, or its values have no known range.
    """
    with warnings.catch_warnings():
        # Pillow only warns about an image of up to 179 million pixels and about odd metadata; both are harmless here.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                return _grey16_to_rgb(np.array(image))
            if image.mode in _WITHOUT_RANGE:
                raise ValueError(
                    f"its pixels are {_WITHOUT_RANGE[image.mode]} without a known range; save it with 8 or 16 bits"
                )
            return np.array(image.convert("RGB"))


def _grey16_to_rgb(values: npt.NDArray[np.uint16]) -> Pixels:
    """Scales 0..65535 to 0..255; Pillow's own conversion (13.0) clips everything above 255."""
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def shrink(pixels: Pixels, max_short_side: int) -> Pixels:
    """Shrinks an image by area averaging until its shorter side is `max_short_side`; smaller images stay unchanged.

    The longer side is rounded down, as by torchvision's `Resize` (0.29): with one more pixel, all others would be
    shifted by up to half a pixel.
    """
    height, width = pixels.shape[:2]
    if min(height, width) <= max_short_side:
        return pixels
    longer = max(height, width) * max_short_side // min(height, width)
    size = (longer, max_short_side) if height < width else (max_short_side, longer)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _keep_jpeg(content: bytes, label: int, max_short_side: int) -> EncodedImage | None:
    """Returns the file's own bytes if they are a complete RGB or grey JPEG that needs no shrinking, else None."""
    data = np.frombuffer(content, np.uint8)
    width, height = jpeg_size(data)
    if not 0 < min(width, height) <= max_short_side or content[-2:] != b"\xff\xd9":
        return None
    try:
        fits = decode_jpeg(data).shape == (height, width, 3)
    except ValueError:  # CMYK or damaged: `read_rgb` converts or refuses it
        return None
    return EncodedImage(MODE_JPG, width, height, content, label) if fits else None
