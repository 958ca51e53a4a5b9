"""The layout of `.beton` files and their writer: samples in order, the same bytes every time, complete or not at all.

The layout is version 2 of FFCV's format, with one image and one integer label per sample; integers are little-endian.

| part | offset | content |
|---|---|---|
| header, 24 B | 0 | version, number of fields, page size, number of samples, position of the allocation table |
| field descriptors | 24 | 1041 B per field: type, name, arguments |
| metadata | 24 + 1041 * fields | one row of 24 B per sample: mode, width, height, position of the pixels, label |
| pages | next multiple of the page size | image bytes, packed; every image is within one page |
| allocation table | after the last page, to the end | 24 B per image: sample, position, size |

An allocation table at position 0 marks a file whose writer did not finish. The bytes equal those of FFCV 1.0.2's own
writer with one worker (with several workers, FFCV's bytes differ in every run).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

import numpy as np

from components.errors import UserError
from components.files import fsync_path, no_space_as_user_error

VERSION: Final = 2
DEFAULT_PAGE_SIZE: Final = 8 << 20
MAX_IMAGE_SIDE: Final = 65535
MODE_JPG: Final = 0
MODE_RAW: Final = 1

HEADER: Final = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_ptr", "<u8")]
)
FIELD: Final = np.dtype([("type_id", "u1"), ("name", "V16"), ("arguments", "u1", (1024,))])
IMAGE: Final = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
ROW: Final = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION: Final = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

FIELDS: Final = ((2, b"image"), (1, b"label"))
"""(FFCV's type number, name) of the two fields, in file order."""

METADATA_START: Final = HEADER.itemsize + FIELD.itemsize * len(FIELDS)

assert (HEADER.itemsize, FIELD.itemsize, IMAGE.itemsize, ROW.itemsize, ALLOCATION.itemsize) == (24, 1041, 13, 24, 24)


class EncodedImage(NamedTuple):
    """One sample as it is stored: `data` is a JPEG, or height * width * 3 bytes of RGB in mode raw."""

    mode: Literal[0, 1]
    width: int
    height: int
    data: bytes
    label: int


def first_page(num_samples: int, page_size: int) -> int:
    """Returns the offset of the first page: the end of the metadata, rounded up to a multiple of the page size."""
    end = METADATA_START + ROW.itemsize * num_samples
    return -(-end // page_size) * page_size


class BetonWriter:
    """Writes a `.beton` file: a context that takes exactly `num_samples` samples through `add`.

    The bytes go to a temporary file in the same folder. On leaving the block without an exception, the header is
    completed last, then the file is synced and renamed to `path`. An exception removes the temporary file, and `path`
    keeps its old content.

    Raises:
        UserError: there is no space left, or an image does not fit into a page.
    """

    def __init__(self, path: Path, num_samples: int, *, page_size: int = DEFAULT_PAGE_SIZE) -> None:
        assert num_samples > 0, "sources without images are refused earlier"
        self.path, self.num_samples, self.page_size = path, num_samples, page_size
        self._rows = np.zeros(num_samples, ROW)
        self._table = np.zeros(num_samples, ALLOCATION)
        self._added = 0
        self._page = bytearray()
        self._page_start = first_page(num_samples, page_size)
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Self:
        with no_space_as_user_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        try:
            self._write_at(0, self._header(table_ptr=0) + _field_descriptors())
            self._file.seek(self._page_start)
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            assert self._added == self.num_samples, f"{self._added} of {self.num_samples} samples were added"
            self._finish()
        except BaseException:
            self._abandon()
            raise

    def add(self, sample: EncodedImage) -> None:
        """Appends the next sample.

        Raises:
            UserError: the image is larger than a page or wider than the format allows, or there is no space left.
        """
        size = len(sample.data)
        if size > self.page_size or max(sample.width, sample.height) > MAX_IMAGE_SIDE:
            raise UserError(
                f"image {self._added} ({sample.width}x{sample.height}, {size} bytes) does not fit into a page",
                where="page_size",
                value=self.page_size,
                remedy="use a smaller `max_short_side`, or a larger `page_size`",
            )
        if len(self._page) + size > self.page_size:
            self._flush_page()
        ptr = self._page_start + len(self._page)
        self._page += sample.data
        self._rows[self._added] = ((sample.mode, sample.width, sample.height, ptr), sample.label)
        self._table[self._added] = (self._added, ptr, size)
        self._added += 1

    def _flush_page(self) -> None:
        self._page += bytes(self.page_size - len(self._page))
        self._write(self._page)
        self._page_start += self.page_size
        self._page = bytearray()

    def _finish(self) -> None:
        self._flush_page()
        self._write(self._table.tobytes())
        self._write_at(METADATA_START, self._rows.tobytes())
        # The pages reach the disk before the header that declares them valid, the header before the name.
        self._sync()
        self._write_at(0, self._header(table_ptr=self._page_start))
        self._sync()
        self._file.close()
        os.replace(self._part, self.path)
        fsync_path(self.path.parent)

    def _header(self, table_ptr: int) -> bytes:
        return np.array([(VERSION, len(FIELDS), self.page_size, self.num_samples, table_ptr)], HEADER).tobytes()

    def _write_at(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        with no_space_as_user_error(self.path):
            self._file.write(data)

    def _sync(self) -> None:
        with no_space_as_user_error(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _abandon(self) -> None:
        # On a full disk close() fails too, because of the bytes still buffered; the file is removed in any case.
        try:
            self._file.close()
        except OSError:
            pass
        finally:
            self._part.unlink(missing_ok=True)


def _field_descriptors() -> bytes:
    table = np.zeros(len(FIELDS), FIELD)
    for row, (type_id, name) in zip(table, FIELDS, strict=True):
        row["type_id"], row["name"] = type_id, name.ljust(16, b"\0")
    return table.tobytes()
