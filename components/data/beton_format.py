"""The layout of FFCV's `.beton` format, version 2: one image and one integer label a sample, little-endian.

| part | offset | content |
|---|---|---|
| header, 24 B | 0 | version, number of fields, page size, number of samples, position of the allocation table |
| field descriptors | 24 | 1041 B a field: type, name, arguments |
| metadata | 24 + 1041 * fields | one row of 24 B a sample: mode, width, height, position of the pixels, label |
| pages | next multiple of the page size | image bytes, packed; no image straddles two pages |
| allocation table | after the last page, to the end | 24 B an image: sample, position, size |

A position of the allocation table of 0 marks a file whose writer did not finish.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np

VERSION: Final = 2
DEFAULT_PAGE_SIZE: Final = 8 << 20
MAX_SIDE: Final = 65535
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
"""(FFCV's type number, name) of our two fields, in file order."""

METADATA_START: Final = HEADER.itemsize + FIELD.itemsize * len(FIELDS)

assert (HEADER.itemsize, FIELD.itemsize, IMAGE.itemsize, ROW.itemsize, ALLOCATION.itemsize) == (24, 1041, 13, 24, 24)


class EncodedImage(NamedTuple):
    """One sample as it goes into the file: `data` is a JPEG, or height * width * 3 RGB bytes in mode raw."""

    mode: Literal[0, 1]
    width: int
    height: int
    data: bytes
    label: int


def field_descriptors() -> bytes:
    """The descriptors of our two fields."""
    table = np.zeros(len(FIELDS), FIELD)
    for row, (type_id, name) in zip(table, FIELDS, strict=True):
        row["type_id"], row["name"] = type_id, name.ljust(16, b"\0")
    return table.tobytes()


def first_page(num_samples: int, page_size: int) -> int:
    """Offset of the first page: the end of the metadata, rounded up."""
    end = METADATA_START + ROW.itemsize * num_samples
    return -(-end // page_size) * page_size
