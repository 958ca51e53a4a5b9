"""One image file becomes one sample of the `.beton` file: decode, shrink, compress.

A pure function of the file's bytes and the settings, so that any number of encoders gives the same samples.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.data.beton_format import MODE_JPG, MODE_RAW, EncodedImage
from components.data.jpeg import decode_jpeg, jpeg_size

Pixels = npt.NDArray[np.uint8]

_NO_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}
"""Modes of Pillow whose values do not say what is black and what is white."""


class ImageItem(NamedTuple):
    """One image of a source and the number of its class."""

    path: str
    label: int


@dataclass(frozen=True)
class EncodeSettings:
    """How images are stored; the fields are those of `EncodeConfig`."""

    side: int
    mode: Literal["jpg", "raw"]
    quality: int = 90
    keep_jpeg: bool = False


class Unreadable(NamedTuple):
    """An image that could not be read, as a value: exceptions do not travel well between processes."""

    path: str
    cause: str


def encode_chunk(items: list[ImageItem], settings: EncodeSettings) -> list[EncodedImage] | Unreadable:
    """Encodes some images in order; stops at the first that cannot be read."""
    encoded = []
    for item in items:
        try:
            encoded.append(encode_file(item, settings))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, cv2.error) as error:
            return Unreadable(item.path, f"{type(error).__name__}: {error}")
    return encoded


def encode_file(item: ImageItem, settings: EncodeSettings) -> EncodedImage:
    """Encodes one image file.

    Raises:
        OSError, ValueError: it cannot be read as an image.
    """
    content = Path(item.path).read_bytes()
    if settings.keep_jpeg and settings.mode == "jpg":
        kept = _kept(content, item.label, settings.side)
        if kept:
            return kept
    return encode_pixels(shrunk(read_rgb(content), settings.side), item.label, settings)


def encode_pixels(pixels: Pixels, label: int, settings: EncodeSettings) -> EncodedImage:
    """Stores RGB pixels (height, width, 3), compressed as OpenCV (and so FFCV) does it."""
    height, width = pixels.shape[:2]
    if settings.mode == "raw":
        return EncodedImage(MODE_RAW, width, height, np.ascontiguousarray(pixels).tobytes(), label)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    good, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    if not good:
        raise ValueError("OpenCV cannot compress it")
    return EncodedImage(MODE_JPG, width, height, data.tobytes(), label)


def read_rgb(content: bytes) -> Pixels:
    """The pixels of an image file, uint8 (height, width, 3) RGB; EXIF orientation is not applied (as in ImageNet).

    Grey of 16 bits is scaled to 8.

    Raises:
        OSError, ValueError: it cannot be read as an image, or its values have no known range.
    """
    with warnings.catch_warnings():
        # Pillow only warns about an image of up to 179 million pixels and about odd metadata; both are harmless here.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                return _grey16(np.array(image))
            if image.mode in _NO_RANGE:
                raise ValueError(
                    f"its pixels are {_NO_RANGE[image.mode]} without a known range; save it with 8 or 16 bits"
                )
            return np.array(image.convert("RGB"))


def _grey16(values: npt.NDArray[np.uint16]) -> Pixels:
    """65535 becomes 255; Pillow's own conversion (13.0) cuts everything above 255 off."""
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """The image with its shorter side at most `side` pixels, area-averaged; smaller images are left as they are."""
    height, width = pixels.shape[:2]
    if min(height, width) <= side:
        return pixels
    if height < width:
        size = max(side, round(width * side / height)), side
    else:
        size = side, max(side, round(height * side / width))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _kept(content: bytes, label: int, side: int) -> EncodedImage | None:
    """The file as it is, where it is a whole RGB or grey JPEG that needs no shrinking."""
    data = np.frombuffer(content, np.uint8)
    width, height = jpeg_size(data)
    if not 0 < min(width, height) <= side or content[-2:] != b"\xff\xd9":
        return None
    try:
        fits = decode_jpeg(data).shape == (height, width, 3)
    except ValueError:  # CMYK, or damaged: decoded and compressed again, or refused, by the ordinary way
        return None
    return EncodedImage(MODE_JPG, width, height, content, label) if fits else None
