"""Failures while encoding: unreadable images, a full disk, killed processes. No incomplete file is kept."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from components.data import encode
from components.data.beton_writer import HEADER, BetonWriter, EncodedImage
from components.data.encode import EncodeSettings, ImageItem, UnreadableImages, encode_split
from components.errors import UserError

SETTINGS = EncodeSettings(64, "jpg")


@pytest.fixture
def items(tmp_path: Path) -> list[ImageItem]:
    (tmp_path / "images").mkdir()
    found = []
    for k in range(100):
        path = tmp_path / "images" / f"{k:03d}.jpg"
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
        found.append(ImageItem(str(path), 0))
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut"])
def test_an_unreadable_image_is_named(
    items: list[ImageItem], tmp_path: Path, content: bytes | None, workers: int
) -> None:
    bad = Path(items[70].path)
    bad.write_bytes(bad.read_bytes()[:700] if content is None else content)
    with pytest.raises(UserError, match=r"070\.jpg: this image cannot be read"):
        encode_split(items, tmp_path / "x.beton", SETTINGS, num_workers=workers)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_a_stage_takes_no_more_processes_than_its_share_of_the_cores(
    items: list[ImageItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WORTH_A_PROCESS", 10)
    monkeypatch.setattr(encode.os, "cpu_count", lambda: 4)
    monkeypatch.setenv("ROBUSTRAIN_CORES", "1")
    counted = []

    def here(done: int, total: int) -> None:
        counted.append(len(multiprocessing.active_children()))

    encode_split(items, tmp_path / "x.beton", SETTINGS, progress=here)
    assert set(counted) == {0}


@pytest.mark.parametrize("processes", [1, 2])
def test_all_unreadable_images_are_named_at_once_and_no_file_is_written(
    items: list[ImageItem], tmp_path: Path, processes: int
) -> None:
    broken = [items[k].path for k in (2, 40, 69)]
    for path in broken:
        Path(path).write_bytes(b"")
    with pytest.raises(UnreadableImages) as caught:
        encode_split(items, tmp_path / "x.beton", SETTINGS, num_workers=processes)
    named = "; ".join(f"{path} (ValueError: the file is empty)" for path in broken)
    assert str(caught.value) == f"3 images cannot be read: {named}. repair, replace or remove the files."
    assert not (tmp_path / "x.beton").exists()


def test_of_many_unreadable_images_the_error_names_some_and_the_log_all(
    items: list[ImageItem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "components.data.encode")
    for item in items[:25]:
        Path(item.path).write_bytes(b"")
    with pytest.raises(UserError, match=r"25 images cannot be read: .*019\.jpg .*; and 5 more, which the log names"):
        encode_split(items, tmp_path / "x.beton", SETTINGS)
    assert sum("cannot be read" in record.message for record in caplog.records) == 25


def test_a_missing_image_is_named(items: list[ImageItem], tmp_path: Path) -> None:
    Path(items[3].path).unlink()
    with pytest.raises(UserError, match=r"003\.jpg"):
        encode_split(items, tmp_path / "x.beton", SETTINGS)


class FullDisk:
    """A file on a disk with `free` bytes left."""

    def __init__(self, file: object, free: int) -> None:
        self._file, self._free = file, free

    def write(self, data: bytes) -> int:
        self._free -= len(data)
        if self._free < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@pytest.mark.parametrize("free", [0, 3 << 20, (4 << 20) + 10], ids=["first page", "second page", "table"])
def test_a_full_disk_is_one_error_and_leaves_no_file(tmp_path: Path, free: int) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(b"an older file")

    def write() -> None:
        with BetonWriter(path, 4, page_size=2 << 20) as writer:
            writer._file = FullDisk(writer._file, free)  # type: ignore[assignment]
            for _ in range(4):
                writer.add(EncodedImage(0, 9, 9, bytes(1 << 20), 0))

    with pytest.raises(UserError, match="no space is left"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["x.beton"]
    assert path.read_bytes() == b"an older file"


def test_the_bytes_are_on_the_disk_before_the_header_and_the_header_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure a file with the final name must be complete, whatever order the disk writes blocks in."""
    path, calls = tmp_path / "x.beton", []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        on_disk = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        finished = on_disk.is_file() and np.frombuffer(on_disk.read_bytes(), HEADER, 1)["table_ptr"][0] > 0
        calls.append("fsync folder" if on_disk.is_dir() else "fsync finished" if finished else "fsync unfinished")
        fsync(descriptor)

    def record_replace(one: Path, other: Path) -> None:
        calls.append("rename")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with BetonWriter(path, 1, page_size=2 << 20) as writer:
        writer.add(EncodedImage(0, 9, 9, b"x", 0))
    assert calls == ["fsync unfinished", "fsync finished", "rename", "fsync folder"]


def test_other_write_errors_keep_their_trace(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(IsADirectoryError),
        BetonWriter(tmp_path / "folder", 1, page_size=2 << 20) as writer,
    ):
        writer.add(EncodedImage(0, 9, 9, b"x", 0))
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_killed_encoder_ends_the_work_with_a_message(items: list[ImageItem], tmp_path: Path) -> None:
    def kill_one(done: int, total: int) -> None:
        children = multiprocessing.active_children()
        assert children
        os.kill(children[0].pid or 0, signal.SIGKILL)
        time.sleep(0.2)

    with pytest.raises(UserError, match="an encoding process was killed"):
        encode_split(items * 20, tmp_path / "x.beton", SETTINGS, num_workers=2, progress=kill_one)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
    assert not multiprocessing.active_children()


# A shell that starts the tests in the background has Ctrl-C ignored in them and in what they start.
SCRIPT = """
import signal
import sys
from pathlib import Path
from components.data.encode import encode_split
from components.data.encode import EncodeSettings, ImageItem

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    items = [ImageItem(sys.argv[1], 0)] * 1000000
    encode_split(items, Path(sys.argv[2]), EncodeSettings(64, "jpg"), num_workers=2,
                 progress=lambda done, total: print(done, flush=True))
"""


def _started(items: list[ImageItem], tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script), items[0].path, str(tmp_path / "x.beton")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert process.stdout
    assert process.stdout.readline().strip() == "32"
    children: list[psutil.Process] = []
    while len(children) < 3:  # two encoders, and the tracker that Python starts beside them
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    return process, children


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_encoder_outlives_its_parent(items: list[ImageItem], tmp_path: Path, number: signal.Signals) -> None:
    process, children = _started(items, tmp_path)
    try:
        process.send_signal(number)
        process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        assert not (tmp_path / "x.beton").exists()
        left = [path.name for path in tmp_path.iterdir() if "beton" in path.name]
        # A killed writer cannot tidy up; what it leaves has a name that nothing reads.
        assert len(left) == (1 if number == signal.SIGKILL else 0)
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
