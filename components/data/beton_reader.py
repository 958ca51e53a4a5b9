"""Opens `.beton` files, checked, as NumPy views of a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from components.data.beton_checks import checked_parts, refuse
from components.data.beton_format import MODE_JPG
from components.data.jpeg import decode_jpeg, jpeg_size
from components.errors import UserError

Pixels = npt.NDArray[np.uint8]


class BetonFile:
    """A sound `.beton` file.

    Args:
        path: the file; it must not change while it is open.
        num_samples: how many samples the manifest promises, where there is one.
        num_classes: how many classes it promises; a label outside is damage.

    Raises:
        UserError: the file is missing, damaged, or not what was promised.
    """

    def __init__(self, path: Path, *, num_samples: int | None = None, num_classes: int | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise UserError("there is no such file", where=str(path), remedy="run the encode stage first")
        if not path.stat().st_size:
            refuse(path, "it is empty")
        self.data = np.memmap(path, np.uint8, "r")
        plain = np.asarray(self.data)
        rows, self.sizes = checked_parts(plain, path)
        self.labels = np.ascontiguousarray(rows["label"])
        image = rows["image"]
        self.modes, self.pointers = (np.ascontiguousarray(image[name]) for name in ("mode", "ptr"))
        self.heights, self.widths = (image[name].astype(np.int64) for name in ("height", "width"))
        self._bytes, self._starts = plain, self.pointers.astype(np.int64)
        if num_samples is not None and len(self) != num_samples:
            refuse(path, f"{len(self)} samples, {num_samples} were promised")
        if num_classes is not None and self.labels.max() >= num_classes:
            refuse(path, f"label {self.labels.max()} with {num_classes} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> Pixels:
        """The bytes of one image as they lie in the file, a read-only view."""
        start = self._starts[index]
        return self._bytes[start : start + int(self.sizes[index])]

    def image(self, index: int) -> Pixels:
        """One image, uint8 (height, width, 3) RGB; a read-only view where it is stored raw.

        Raises:
            UserError: its JPEG cannot be decoded or has another size than the file says.
        """
        height, width = int(self.heights[index]), int(self.widths[index])
        if self.modes[index] != MODE_JPG:
            return self.stored(index).reshape(height, width, 3)
        try:
            pixels = decode_jpeg(self.stored(index))
        except ValueError as error:
            refuse(self.path, f"sample {index} cannot be decoded ({error})")
        if pixels.shape != (height, width, 3):
            refuse(self.path, f"sample {index} is {pixels.shape[1]}x{pixels.shape[0]}, not {width}x{height}")
        return pixels

    def uniform_pixels(self) -> Pixels | None:
        """All images as one (n, height, width, 3) array where all are raw, of one size and in one page; else None."""
        step = int(self.sizes[0])
        start = int(self._starts[0])
        same = (self.sizes == step).all() and (self.heights == self.heights[0]).all() and (self.modes != MODE_JPG).all()
        if not same or (np.diff(self._starts) != step).any():
            return None
        block = self._bytes[start : start + step * len(self)]
        return cast(Pixels, block.reshape(len(self), int(self.heights[0]), int(self.widths[0]), 3))

    def check_jpeg_headers(self) -> None:
        """Compares the size in every JPEG's own header with the metadata: what FFCV's decoder takes on trust.

        Raises:
            UserError: naming the first sample that differs.
        """
        for index in np.flatnonzero(self.modes == MODE_JPG):
            stored = self.stored(int(index))
            expected = int(self.widths[index]), int(self.heights[index])
            if jpeg_size(stored) != expected or stored[-2:].tobytes() != b"\xff\xd9":
                refuse(self.path, f"sample {index} is not a whole JPEG of {expected[0]}x{expected[1]}")
