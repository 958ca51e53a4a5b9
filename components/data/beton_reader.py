"""Opens `.beton` files as NumPy views of a memory map, after checking their whole structure.

FFCV's loader checks nothing: a damaged file crashes the process, hangs it, or silently gives other images. The checks
here cover the structure but not the pixels (1.28 million samples take well under a second); damage inside the pixels is
found by the sha256 in the manifest. `components.data.beton_writer` describes the layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import numpy.typing as npt

from components.data.beton_writer import (
    ALLOCATION,
    FIELD,
    FIELDS,
    HEADER,
    METADATA_START,
    MODE_JPG,
    MODE_RAW,
    ROW,
    VERSION,
    first_page,
)
from components.data.jpeg import decode_jpeg, jpeg_size
from components.errors import UserError

Bytes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]

_PAGE_SIZES = [1 << bits for bits in range(21, 32)]


class BetonFile:
    """An opened `.beton` file whose structure is sound.

    Args:
        path: the file; it must not change while it is open.
        num_samples: the number of samples that the manifest declares; not checked if None.
        num_classes: the number of classes that the manifest declares; a label outside them is damage.

    Raises:
        UserError: the file is missing, damaged, or differs from what the manifest declares.
    """

    def __init__(self, path: Path, *, num_samples: int | None = None, num_classes: int | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise UserError("there is no such file", where=str(path), remedy="run the encode stage first")
        if not path.stat().st_size:
            raise_damaged(path, "it is empty")
        self.data = np.memmap(path, np.uint8, "r")
        self._bytes = np.asarray(self.data)
        rows, self.sizes = checked_metadata(self._bytes, path)
        self.labels = np.ascontiguousarray(rows["label"])
        image = rows["image"]
        self.modes, self.pointers = (np.ascontiguousarray(image[name]) for name in ("mode", "ptr"))
        self.heights, self.widths = (image[name].astype(np.int64) for name in ("height", "width"))
        self._starts = self.pointers.astype(np.int64)
        if num_samples is not None and len(self) != num_samples:
            raise_damaged(path, f"it has {len(self)} samples, its manifest says {num_samples}")
        if num_classes is not None and self.labels.max() >= num_classes:
            raise_damaged(path, f"label {self.labels.max()} with {num_classes} classes")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_jpegs(self) -> bool:
        """Whether any image is stored as a JPEG."""
        return bool((self.modes == MODE_JPG).any())

    def stored_bytes(self, index: int) -> Bytes:
        """Returns the bytes of one image as stored in the file, as a read-only view."""
        start = self._starts[index]
        return self._bytes[start : start + int(self.sizes[index])]

    def image(self, index: int) -> Pixels:
        """Returns one image, uint8 (height, width, 3) RGB; a read-only view if it is stored raw.

        Raises:
            UserError: its JPEG cannot be decoded or has another size than the metadata says.
        """
        height, width = int(self.heights[index]), int(self.widths[index])
        if self.modes[index] != MODE_JPG:
            return self.stored_bytes(index).reshape(height, width, 3)
        try:
            pixels = decode_jpeg(self.stored_bytes(index))
        except ValueError as error:
            raise_damaged(self.path, f"sample {index} cannot be decoded ({error})")
        if pixels.shape != (height, width, 3):
            raise_damaged(self.path, f"sample {index} is {pixels.shape[1]}x{pixels.shape[0]}, not {width}x{height}")
        return pixels

    def uniform_pixels(self) -> Pixels | None:
        """Returns all images as one (n, height, width, 3) view if all are raw, of one size and in one page."""
        step = int(self.sizes[0])
        start = int(self._starts[0])
        same = (self.sizes == step).all() and (self.heights == self.heights[0]).all() and not self.has_jpegs
        if not same or (np.diff(self._starts) != step).any():
            return None
        block = self._bytes[start : start + step * len(self)]
        return cast(Pixels, block.reshape(len(self), int(self.heights[0]), int(self.widths[0]), 3))

    def check_jpeg_headers(self) -> None:
        """Compares the size in every JPEG's own header with the metadata, which FFCV's decoder trusts.

        Raises:
            UserError: a JPEG is cut off or has another size; names the first such sample.
        """
        for index in np.flatnonzero(self.modes == MODE_JPG):
            stored = self.stored_bytes(int(index))
            expected = int(self.widths[index]), int(self.heights[index])
            if jpeg_size(stored) != expected or stored[-2:].tobytes() != b"\xff\xd9":
                raise_damaged(self.path, f"sample {index} is not a complete JPEG of {expected[0]}x{expected[1]}")


def raise_damaged(path: Path, why: str) -> NoReturn:
    """Raises the `UserError` for a damaged file."""
    raise UserError(f"damaged .beton file: {why}", where=str(path), remedy="encode the images again")


def checked_metadata(data: Bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Checks the structure of a file and returns its metadata rows (ROW) and the samples' sizes in bytes (uint64).

    Raises:
        UserError: the file is damaged, unfinished, or not a file of one image and one label per sample.
    """
    header = _checked_header(data, path)
    count, page_size = int(header["num_samples"]), int(header["page_size"])
    start = first_page(count, page_size)
    table_ptr = int(header["table_ptr"])
    if table_ptr < start + page_size or table_ptr % page_size:
        raise_damaged(path, f"its allocation table cannot start at {table_ptr}")
    if len(data) - table_ptr != count * ALLOCATION.itemsize:
        raise_damaged(path, f"{len(data) - table_ptr} bytes of allocation table for {count} samples")
    rows = data[METADATA_START : METADATA_START + count * ROW.itemsize].view(ROW)
    table = np.frombuffer(data[table_ptr:].tobytes(), ALLOCATION)
    sizes = _sizes_by_sample(rows, table, path)
    _check_images(rows, sizes, path)
    _check_allocations(data, table, start, table_ptr, page_size, path)
    return rows, sizes


def _checked_header(data: Bytes, path: Path) -> np.void:
    if len(data) < METADATA_START:
        raise_damaged(path, f"{len(data)} bytes cannot hold a header")
    header = data[: HEADER.itemsize].view(HEADER)[0]
    if header["version"] != VERSION:
        raise_damaged(path, f"version {header['version']} instead of {VERSION}")
    if header["table_ptr"] == 0:
        raise_damaged(path, "its writer did not finish")
    if header["num_fields"] != len(FIELDS):
        raise_damaged(path, f"{header['num_fields']} fields instead of an image and a label")
    fields = data[HEADER.itemsize : METADATA_START].view(FIELD)
    found = tuple((int(f["type_id"]), bytes(f["name"]).rstrip(b"\0")) for f in fields)
    if found != FIELDS or fields["arguments"].any():
        raise_damaged(path, f"fields {found} instead of {FIELDS}")
    if int(header["page_size"]) not in _PAGE_SIZES:
        raise_damaged(path, f"a page size of {header['page_size']}")
    if not 0 < int(header["num_samples"]) <= len(data) // ROW.itemsize:
        raise_damaged(path, f"{header['num_samples']} samples in {len(data)} bytes")
    return header


def _sizes_by_sample(rows: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    by_sample = table[np.argsort(table["sample_id"], kind="stable")]
    if not np.array_equal(by_sample["sample_id"], np.arange(len(rows), dtype=np.uint64)):
        raise_damaged(path, "its allocation table does not name every sample once")
    wrong = np.flatnonzero(by_sample["ptr"] != rows["image"]["ptr"])
    if len(wrong):
        raise_damaged(path, f"sample {wrong[0]} has another position than in the allocation table")
    return np.ascontiguousarray(by_sample["size"])


def _check_images(rows: np.ndarray, sizes: np.ndarray, path: Path) -> None:
    image = rows["image"]
    unknown = np.flatnonzero(~np.isin(image["mode"], (MODE_JPG, MODE_RAW)))
    if len(unknown):
        raise_damaged(path, f"sample {unknown[0]} has the unknown mode {image['mode'][unknown[0]]}")
    area = image["height"].astype(np.uint64) * image["width"] * np.uint64(3)
    empty = np.flatnonzero((area == 0) | (sizes == 0))
    if len(empty):
        raise_damaged(path, f"sample {empty[0]} has no pixels")
    wrong = np.flatnonzero((image["mode"] == MODE_RAW) & (sizes != area))
    if len(wrong):
        raise_damaged(path, f"sample {wrong[0]} has {sizes[wrong[0]]} bytes for {area[wrong[0]]} values")
    negative = np.flatnonzero(rows["label"] < 0)
    if len(negative):
        raise_damaged(path, f"sample {negative[0]} has the label {rows['label'][negative[0]]}")


def _check_allocations(data: Bytes, table: np.ndarray, start: int, end: int, page_size: int, path: Path) -> None:
    """Checks that every image is within one page, directly after the one before, with zeros after a page's last."""
    ordered = table[np.argsort(table["ptr"], kind="stable")]
    first, size = ordered["ptr"], ordered["size"]
    if int(first[0]) < start or int(first[-1]) >= end or size.max() > page_size:
        raise_damaged(path, "an image is outside the pages")
    after, page = first + size, first // np.uint64(page_size)
    if (page != (after - np.uint64(1)) // np.uint64(page_size)).any():
        raise_damaged(path, "an image straddles two pages")
    packed = np.where(page[1:] == page[:-1], after[:-1], page[1:] * np.uint64(page_size))
    if int(first[0]) % page_size or (first[1:] != packed).any():
        raise_damaged(path, "its images overlap or leave gaps")
    last = np.append(page[1:] != page[:-1], True)
    for offset in after[last].astype(np.int64):
        page_end = -(-int(offset) // page_size) * page_size
        if data[offset : min(offset + 64, page_end)].any():
            raise_damaged(path, f"data after the last image of a page, at {offset}")
