"""Opens `.beton` files, checked, as NumPy views of a memory map.

Tells a sound `.beton` file from a damaged one before anybody reads pixels out of it.

FFCV's loader checks nothing: a damaged file crashes the process, hangs it, or silently gives other images. These checks
look at the whole structure but not at the pixels (1.28 million samples take well under a second); damage inside the
pixels is what the manifest's sha256 is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import numpy.typing as npt

from components.data.beton_format import (
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

# MERGED

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


Bytes = npt.NDArray[np.uint8]
_PAGE_SIZES = [1 << bits for bits in range(21, 32)]


def refuse(path: Path, why: str) -> NoReturn:
    """Raises the one error that every damaged file ends in."""
    raise UserError(f"damaged .beton file: {why}", where=str(path), remedy="encode the images again")


def checked_parts(data: Bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The metadata rows (ROW) and the sizes in bytes (uint64) of all samples of a sound file.

    Raises:
        UserError: the file is damaged, unfinished, or no file of one image and one label a sample.
    """
    header = _checked_header(data, path)
    count, page_size = int(header["num_samples"]), int(header["page_size"])
    start = first_page(count, page_size)
    table_ptr = int(header["table_ptr"])
    if table_ptr < start + page_size or table_ptr % page_size:
        refuse(path, f"its allocation table cannot lie at {table_ptr}")
    if len(data) - table_ptr != count * ALLOCATION.itemsize:
        refuse(path, f"{len(data) - table_ptr} bytes of allocation table for {count} samples")
    rows = data[METADATA_START : METADATA_START + count * ROW.itemsize].view(ROW)
    table = np.frombuffer(data[table_ptr:].tobytes(), ALLOCATION)
    sizes = _sizes_by_sample(rows, table, path)
    _check_images(rows, sizes, path)
    _check_places(data, table, start, table_ptr, page_size, path)
    return rows, sizes


def _checked_header(data: Bytes, path: Path) -> np.void:
    if len(data) < METADATA_START:
        refuse(path, f"{len(data)} bytes cannot hold a header")
    header = data[: HEADER.itemsize].view(HEADER)[0]
    if header["version"] != VERSION:
        refuse(path, f"version {header['version']} instead of {VERSION}")
    if header["table_ptr"] == 0:
        refuse(path, "its writer did not finish")
    if header["num_fields"] != len(FIELDS):
        refuse(path, f"{header['num_fields']} fields instead of an image and a label")
    fields = data[HEADER.itemsize : METADATA_START].view(FIELD)
    found = tuple((int(f["type_id"]), bytes(f["name"]).rstrip(b"\0")) for f in fields)
    if found != FIELDS or fields["arguments"].any():
        refuse(path, f"fields {found} instead of {FIELDS}")
    if int(header["page_size"]) not in _PAGE_SIZES:
        refuse(path, f"a page size of {header['page_size']}")
    if not 0 < int(header["num_samples"]) <= len(data) // ROW.itemsize:
        refuse(path, f"{header['num_samples']} samples in {len(data)} bytes")
    return header


def _sizes_by_sample(rows: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    by_sample = table[np.argsort(table["sample_id"], kind="stable")]
    if not np.array_equal(by_sample["sample_id"], np.arange(len(rows), dtype=np.uint64)):
        refuse(path, "its allocation table does not name every sample once")
    wrong = np.flatnonzero(by_sample["ptr"] != rows["image"]["ptr"])
    if len(wrong):
        refuse(path, f"sample {wrong[0]} points elsewhere than the allocation table")
    return np.ascontiguousarray(by_sample["size"])


def _check_images(rows: np.ndarray, sizes: np.ndarray, path: Path) -> None:
    image = rows["image"]
    unknown = np.flatnonzero(~np.isin(image["mode"], (MODE_JPG, MODE_RAW)))
    if len(unknown):
        refuse(path, f"sample {unknown[0]} has the unknown mode {image['mode'][unknown[0]]}")
    area = image["height"].astype(np.uint64) * image["width"] * np.uint64(3)
    empty = np.flatnonzero((area == 0) | (sizes == 0))
    if len(empty):
        refuse(path, f"sample {empty[0]} has no pixels")
    wrong = np.flatnonzero((image["mode"] == MODE_RAW) & (sizes != area))
    if len(wrong):
        refuse(path, f"sample {wrong[0]} has {sizes[wrong[0]]} bytes for {area[wrong[0]]} values")
    negative = np.flatnonzero(rows["label"] < 0)
    if len(negative):
        refuse(path, f"sample {negative[0]} has the label {rows['label'][negative[0]]}")


def _check_places(data: Bytes, table: np.ndarray, start: int, end: int, page_size: int, path: Path) -> None:
    """Every allocation inside one page, packed against the one before it, and zeros after the last of a page."""
    ordered = table[np.argsort(table["ptr"], kind="stable")]
    first, size = ordered["ptr"], ordered["size"]
    if int(first[0]) < start or int(first[-1]) >= end or size.max() > page_size:
        refuse(path, "an image lies outside the pages")
    after, page = first + size, first // np.uint64(page_size)
    if (page != (after - np.uint64(1)) // np.uint64(page_size)).any():
        refuse(path, "an image straddles two pages")
    packed = np.where(page[1:] == page[:-1], after[:-1], page[1:] * np.uint64(page_size))
    if int(first[0]) % page_size or (first[1:] != packed).any():
        refuse(path, "its images overlap or leave gaps")
    last = np.append(page[1:] != page[:-1], True)
    for offset in after[last].astype(np.int64):
        page_end = -(-int(offset) // page_size) * page_size
        if data[offset : min(offset + 64, page_end)].any():
            refuse(path, f"data after the last image of a page, at {offset}")
