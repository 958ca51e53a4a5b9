"""Writes `.beton` files: samples in order, the same bytes every time, whole or not at all.

The bytes equal those of FFCV 1.0.2's own writer with one worker (with several, FFCV's differ in every run).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from components.data.beton_format import (
    ALLOCATION,
    DEFAULT_PAGE_SIZE,
    FIELDS,
    HEADER,
    MAX_SIDE,
    METADATA_START,
    ROW,
    VERSION,
    EncodedImage,
    field_descriptors,
    first_page,
)
from components.errors import UserError
from components.files import no_space_as_user_error


class BetonWriter:
    """A context that takes `num_samples` samples through `add` and leaves a finished file at `path`.

    Everything goes to a temporary name beside it; the header is completed last, then the file is synced and renamed.
    When the block is left by an exception the temporary file is removed and `path` is as it was.

    Raises:
        UserError: there is no space left, or an image does not fit into a page.
    """

    def __init__(self, path: Path, num_samples: int, *, page_size: int = DEFAULT_PAGE_SIZE) -> None:
        assert num_samples > 0, "an empty file is refused by the encoder before it gets here"
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
            self._write_at(0, self._header(table_ptr=0) + field_descriptors())
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
        """Appends the next sample."""
        size = len(sample.data)
        if size > self.page_size or max(sample.width, sample.height) > MAX_SIDE:
            raise UserError(
                f"image {self._added} ({sample.width}x{sample.height}, {size} bytes) does not fit into a page",
                where="page_size",
                value=self.page_size,
                remedy="use a smaller `side`, or a larger `page_size`",
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
        self._guarded(self._page)
        self._page_start += self.page_size
        self._page = bytearray()

    def _finish(self) -> None:
        self._flush_page()
        self._guarded(self._table.tobytes())
        self._write_at(METADATA_START, self._rows.tobytes())
        self._sync()
        self._write_at(0, self._header(table_ptr=self._page_start))
        self._sync()
        self._file.close()
        os.replace(self._part, self.path)
        _sync_folder(self.path.parent)

    def _header(self, table_ptr: int) -> bytes:
        return np.array([(VERSION, len(FIELDS), self.page_size, self.num_samples, table_ptr)], HEADER).tobytes()

    def _write_at(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._guarded(data)

    def _guarded(self, data: bytes | bytearray) -> None:
        with no_space_as_user_error(self.path):
            self._file.write(data)

    def _sync(self) -> None:
        with no_space_as_user_error(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _abandon(self) -> None:
        # A full disk makes close() fail too, for what is still buffered; the file goes away all the same.
        try:
            self._file.close()
        except OSError:
            pass
        finally:
            self._part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
