"""Damaged `.beton` files are refused when they are opened, or when the damaged image is read; never silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.data.beton_reader import BetonFile
from components.data.beton_writer import ALLOCATION, HEADER, METADATA_START, ROW, BetonWriter
from components.data.encode import EncodeSettings, encode_pixels
from components.data.manifest import read_manifest
from components.errors import UserError

N = 30
Damage = Callable[[bytearray], "bytes | bytearray"]


def _file(path: Path, mode: str) -> Path:
    rng = np.random.default_rng(0)
    with BetonWriter(path, N, page_size=2 << 20) as writer:
        for k in range(N):
            pixels = rng.integers(0, 256, (200 + k, 180, 3), np.uint8)
            writer.add(encode_pixels(pixels, k % 4, EncodeSettings(512, mode)))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    return {mode: _file(folder / f"{mode}.beton", mode).read_bytes() for mode in ("jpg", "raw")}


def header(**values: int) -> Damage:
    def damage(data: bytearray) -> bytearray:
        view = np.frombuffer(data, HEADER, 1)
        for name, change in values.items():
            view[name] = change
        return data

    return damage


def row(index: int, name: str, value: int, *, relative: bool = False) -> Damage:
    def damage(data: bytearray) -> bytearray:
        rows = np.frombuffer(data, ROW, N, METADATA_START)
        field = rows["image"][name] if name != "label" else rows["label"]
        field[index] = int(field[index]) + value if relative else value
        return data

    return damage


def table(index: int, name: str, change: Callable[[int], int]) -> Damage:
    def damage(data: bytearray) -> bytearray:
        start = int(np.frombuffer(data, HEADER, 1)["table_ptr"][0])
        rows = np.frombuffer(data, ALLOCATION, N, start)
        rows[name][index] = change(int(rows[name][index]))
        return data

    return damage


def pointer(change: int) -> Damage:
    def damage(data: bytearray) -> bytearray:
        pointers = np.frombuffer(data, HEADER, 1)["table_ptr"]
        pointers[0] = int(pointers[0]) + change
        return data

    return damage


def zeroed_metadata(data: bytearray) -> bytearray:
    data[METADATA_START : METADATA_START + 24 * N] = bytes(24 * N)
    return data


def byte(offset: int, value: int) -> Damage:
    def damage(data: bytearray) -> bytearray:
        data[offset] = value
        return data

    return damage


def last_sample_forgotten(data: bytearray) -> bytearray:
    """Count and table agree on one sample fewer; only its metadata is still there."""
    return header(num_samples=N - 1)(data)[:-24]  # type: ignore[return-value]


def last_image_too_long(data: bytearray) -> bytearray:
    """The last image reaches to the end of the file, over the allocation table, but is not larger than a page."""
    start = int(np.frombuffer(data, HEADER, 1)["table_ptr"][0])
    last = np.frombuffer(data, ALLOCATION, N, start)[N - 1]
    size = len(data) - int(last["ptr"])
    assert int(last["size"]) < size < 2 << 20
    return table(N - 1, "size", lambda _: size)(data)  # type: ignore[return-value]


AT_OPEN: dict[str, Damage] = {
    "empty": lambda d: b"",
    "ten bytes": lambda d: d[:10],
    "cut in the descriptors": lambda d: d[:1000],
    "cut in the metadata": lambda d: d[: METADATA_START + 100],
    "cut in the data": lambda d: d[: (2 << 20) + 5000],
    "no allocation table": lambda d: d[: -24 * N],
    "table cut in a row": lambda d: d[:-10],
    "table cut on a row": lambda d: d[:-24],
    "trailing bytes": lambda d: d + bytes(24),
    "unfinished": header(table_ptr=0),
    "zero metadata": zeroed_metadata,
    "version": header(version=3),
    "one field": header(num_fields=1),
    "three fields": header(num_fields=3),
    "double page size": header(page_size=4 << 20),
    "odd page size": header(page_size=3000000),
    "page size zero": header(page_size=0),
    "a sample fewer": header(num_samples=N - 1),
    "a sample forgotten": last_sample_forgotten,
    "a sample more": header(num_samples=N + 1),
    "2^40 samples": header(num_samples=1 << 40),
    "no samples": header(num_samples=0),
    "table later": pointer(24),
    "table earlier": pointer(-8),
    "table a page earlier": pointer(-(2 << 20)),
    "type number": byte(24, 7),
    "field name": byte(25, 200),
    "field arguments": byte(100, 1),
    "unknown mode": row(3, "mode", 7),
    "other mode": row(3, "mode", 1),
    "height zero": row(3, "height", 0),
    "pointer moved": row(3, "ptr", 1, relative=True),
    "pointer far away": row(3, "ptr", 1 << 50),
    "pointer of another": table(3, "ptr", lambda p: p + 1),
    "size halved": table(3, "size", lambda s: s // 2),
    "last size halved": table(N - 1, "size", lambda s: s // 2),
    "size of a page": table(3, "size", lambda s: 2 << 20),
    "size huge": table(3, "size", lambda s: 1 << 63),
    "last image runs into the table": last_image_too_long,
    "sample twice": table(3, "sample_id", lambda i: 4),
    "negative label": row(3, "label", -1),
    "label too large": row(3, "label", 4),
}


def opened(data: bytes | bytearray, path: Path) -> BetonFile:
    path.write_bytes(data)
    return BetonFile(path, num_classes=4)


@pytest.mark.parametrize("damage", AT_OPEN.values(), ids=list(AT_OPEN))
def test_structure_is_checked_at_open(sound: dict[str, bytes], tmp_path: Path, damage: Damage) -> None:
    opened(sound["jpg"], tmp_path / "sound.beton")
    path = tmp_path / "damaged.beton"
    with pytest.raises(UserError, match=r"damaged\.beton: damaged .beton file: .*encode the images again"):
        opened(damage(bytearray(sound["jpg"])), path)


@pytest.mark.parametrize("name", ["height", "width", "mode"])
def test_raw_sizes_are_checked_at_open(sound: dict[str, bytes], tmp_path: Path, name: str) -> None:
    change = row(3, name, 0) if name == "mode" else row(3, name, 50, relative=True)
    opened(sound["raw"], tmp_path / "sound.beton").image(3)
    if name == "mode":
        file = opened(change(bytearray(sound["raw"])), tmp_path / "x.beton")
        with pytest.raises(UserError, match="sample 3 cannot be decoded"):
            file.image(3)
    else:
        with pytest.raises(UserError, match="sample 3 has"):
            opened(change(bytearray(sound["raw"])), tmp_path / "x.beton")


def image_bytes(index: int, change: Callable[[bytes], bytes]) -> Damage:
    def damage(data: bytearray) -> bytearray:
        start = int(np.frombuffer(data, HEADER, 1)["table_ptr"][0])
        _, ptr, size = np.frombuffer(data, ALLOCATION, N, start)[index].tolist()
        data[ptr : ptr + size] = change(bytes(data[ptr : ptr + size])).ljust(size, b"\0")[:size]
        return data

    return damage


AT_READ: dict[str, Damage] = {
    "width": row(3, "width", -50, relative=True),
    "height": row(3, "height", 50, relative=True),
    "zeroed": image_bytes(3, lambda b: bytes(len(b))),
    "cut": image_bytes(3, lambda b: b[: len(b) // 2]),
    "not a JPEG": image_bytes(3, lambda b: b"\x89PNG" + b[4:]),
}


@pytest.mark.parametrize("damage", AT_READ.values(), ids=list(AT_READ))
def test_jpegs_are_checked_when_they_are_read(sound: dict[str, bytes], tmp_path: Path, damage: Damage) -> None:
    file = opened(damage(bytearray(sound["jpg"])), tmp_path / "x.beton")
    assert file.image(4).shape == (204, 180, 3)
    with pytest.raises(UserError, match="sample 3"):
        file.image(3)
    with pytest.raises(UserError, match="sample 3"):
        file.check_jpeg_headers()


def test_another_count_than_the_manifests_is_refused(sound: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(sound["raw"])
    with pytest.raises(UserError, match="it has 30 samples, its manifest says 31"):
        BetonFile(path, num_samples=31)
    with pytest.raises(UserError, match="no such file"):
        BetonFile(tmp_path / "y.beton")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[1]", "\x00\x01"])
def test_damaged_manifests_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="damaged data manifest"):
        read_manifest(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="no data manifest"):
        read_manifest(tmp_path / "other.json")
