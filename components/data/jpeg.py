"""Decodes JPEGs with libjpeg-turbo and its fast DCT, as FFCV does, or with OpenCV if that library is missing.

Both engines of the loader give equal pixels only with the same library and flag. OpenCV decodes with the accurate DCT,
whose values differ by up to about 9 of 255 levels, so training and evaluation record `decoder_name()` in their runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_RGB = 0  # TJPF_RGB
_FAST_DCT = 2048  # TJFLAG_FASTDCT
_LIBRARIES = ("libturbojpeg.so.0", "libturbojpeg.so", "libturbojpeg.dylib")
_handles = threading.local()


def decoder_name() -> str:
    """Returns `libjpeg-turbo` (the same pixels as FFCV) or `opencv` (slightly different pixels)."""
    return "libjpeg-turbo" if _turbo() else "opencv"


def decode_jpeg(data: Bytes) -> Bytes:
    """Returns the pixels of a complete JPEG, uint8 (height, width, 3) RGB; grey becomes RGB.

    The EXIF orientation is not applied.

    Raises:
        ValueError: the bytes are not a complete JPEG that converts to RGB.
    """
    library = _turbo()
    return _decode_turbo(library, data) if library else _decode_opencv(data)


def jpeg_size(data: Bytes) -> tuple[int, int]:
    """Returns (width, height) from a JPEG's start-of-frame header; (0, 0) if no such header is found."""
    head, at = data[:65536].tobytes(), 2
    if head[:2] != b"\xff\xd8":
        return 0, 0
    while at + 9 < len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return 0, 0


@functools.cache
def _turbo() -> Any:
    """Returns the library with its functions' types declared, or None."""
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            return _declared(ctypes.CDLL(name))
    # Last, as it starts a process to find it.
    found = ctypes.util.find_library("turbojpeg")
    with contextlib.suppress(OSError):
        return _declared(ctypes.CDLL(found)) if found else None
    return None


def _declared(library: Any) -> Any:
    pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
    out = ctypes.POINTER(ctypes.c_int)
    library.tjInitDecompress.restype = pointer
    library.tjDestroy.argtypes = [pointer]
    library.tjGetErrorStr2.argtypes, library.tjGetErrorStr2.restype = [pointer], ctypes.c_char_p
    library.tjDecompressHeader3.argtypes = [pointer, pointer, long, out, out, out, out]
    library.tjDecompress2.argtypes = [pointer, pointer, long, pointer, number, number, number, number, number]
    return library


class _Handle:
    """A decompressor of the library. Two threads must not share one, so each thread has its own."""

    def __init__(self, library: Any) -> None:
        self.library, self.pointer = library, library.tjInitDecompress()

    def __del__(self) -> None:
        self.library.tjDestroy(self.pointer)


def _decode_turbo(library: Any, data: Bytes) -> Bytes:
    if not hasattr(_handles, "one"):
        _handles.one = _Handle(library)
    handle, source = _handles.one.pointer, np.ascontiguousarray(data).ctypes.data
    width, height, sampling, space = (ctypes.c_int() for _ in range(4))
    status = library.tjDecompressHeader3(handle, source, data.size, width, height, sampling, space)
    if status == 0:
        pixels = np.empty((height.value, width.value, 3), np.uint8)
        target = pixels.ctypes.data
        status = library.tjDecompress2(handle, source, data.size, target, width.value, 0, height.value, _RGB, _FAST_DCT)
        if status == 0:
            return pixels
    raise ValueError(library.tjGetErrorStr2(handle).decode())


def _decode_opencv(data: Bytes) -> Bytes:
    import cv2

    pixels = cv2.imdecode(np.ascontiguousarray(data), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or data[-2:].tobytes() != b"\xff\xd9":
        raise ValueError("OpenCV cannot read it as a complete JPEG")
    return np.ascontiguousarray(pixels[:, :, ::-1]).astype(np.uint8, copy=False)
