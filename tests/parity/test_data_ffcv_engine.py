"""FFCV beside us: it reads what we write, we read what it writes, and both engines give equal batches.

FFCV compiles for several seconds in every loader, so this module makes two of them and no more.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.data import ffcv_engine
from components.data.beton_reader import BetonFile
from components.data.beton_writer import BetonWriter
from components.data.crop import RandomResizedCrop
from components.data.encode import EncodeSettings, encode_pixels
from components.data.loader import Loader, open_loader
from components.data.manifest import DataManifest, SplitManifest
from components.errors import UserError
from components.store.objects import ObjectStore

pytestmark = pytest.mark.ffcv

if ffcv_engine.import_error():
    warnings.warn(
        f"FFCV IS NOT TESTED: it does not import ({ffcv_engine.import_error()}); run `make setup`", stacklevel=1
    )
    pytest.skip("FFCV does not import; run `make setup`", allow_module_level=True)

N = 130
ROOT = Path(__file__).resolve().parents[2]

FFCV_WRITES = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

folder = sys.argv[1]
arrays = dict(np.load(folder + "/images.npz"))

class Set:
    def __len__(self):
        return len(arrays) - 1
    def __getitem__(self, k):
        return arrays[f"arr_{k}"], int(arrays["labels"][k])

if __name__ == "__main__":
    for mode, workers in (("jpg", 1), ("raw", 1), ("jpg", 2)):
        fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
        writer = DatasetWriter(f"{folder}/ffcv-{mode}-{workers}.beton", fields, num_workers=workers, page_size=2 << 20)
        writer.from_indexed_dataset(Set(), chunksize=10)
"""


def _images() -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 260, (N, 2))
    images = [
        np.kron(rng.integers(0, 256, (h // 4, w // 4, 3), np.uint8), np.ones((4, 4, 1), np.uint8)) for h, w in sizes
    ]
    return images, rng.integers(0, 10, N).tolist()


IMAGES, LABELS = _images()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FFCV's own files, written in a process of their own: its writer forks."""
    made = tmp_path_factory.mktemp("ffcv")
    np.savez(made / "images.npz", *IMAGES, labels=LABELS)
    (made / "write.py").write_text(FFCV_WRITES)
    done = subprocess.run(
        [sys.executable, "write.py", str(made)], cwd=made, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return made


def write(path: Path, modes: list[Any]) -> Path:
    with BetonWriter(path, N, page_size=2 << 20) as writer:
        for image, label, mode in zip(IMAGES, LABELS, modes, strict=True):
            writer.add(encode_pixels(image, label, EncodeSettings(1000, mode)))
    return path


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_our_bytes_are_ffcvs_with_one_worker(folder: Path, tmp_path: Path, mode: str) -> None:
    ours = write(tmp_path / "ours.beton", [mode] * N)
    assert ours.stat().st_size > 3 * (2 << 20), "several pages"
    assert ours.read_bytes() == (folder / f"ffcv-{mode}-1.beton").read_bytes()


@pytest.mark.parametrize("name", ["ffcv-jpg-1", "ffcv-raw-1", "ffcv-jpg-2"])
def test_we_read_what_ffcv_wrote(folder: Path, tmp_path: Path, name: str) -> None:
    theirs = BetonFile(folder / f"{name}.beton", num_samples=N, num_classes=10)
    theirs.check_jpeg_headers()
    ours = BetonFile(write(tmp_path / "ours.beton", [name.split("-")[1]] * N))
    assert theirs.labels.tolist() == LABELS
    for index in range(N):
        assert np.array_equal(theirs.stored_bytes(index), ours.stored_bytes(index))
        assert np.array_equal(theirs.image(index), ours.image(index))


def test_ffcv_reads_what_we_wrote(tmp_path: Path) -> None:
    """With FFCV's stock pipelines, which know nothing of us."""
    with ffcv_engine.preserve_torch_threads():
        from ffcv.loader import Loader as Stock
        from ffcv.loader import OrderOption

        same = [np.ascontiguousarray(image[:100, :100]) for image in IMAGES]
        with BetonWriter(tmp_path / "x.beton", N, page_size=2 << 20) as writer:
            for k, (image, label) in enumerate(zip(same, LABELS, strict=True)):
                writer.add(encode_pixels(image, label, EncodeSettings(1000, "jpg" if k % 2 else "raw")))
        stock = Stock(
            str(tmp_path / "x.beton"), batch_size=40, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False
        )
        images, labels = [], []
        for batch in stock:
            images.append(batch[0].numpy().copy())
            labels += batch[1].numpy().reshape(-1).tolist()
    file = BetonFile(tmp_path / "x.beton")
    assert labels == LABELS
    assert np.array_equal(np.concatenate(images), np.stack([file.image(k) for k in range(N)]))


class Engines:
    """A file of both modes, opened by both engines."""

    def __init__(self, folder: Path) -> None:
        store = ObjectStore(str(folder / "objects"), folder / "cache")
        ref = store.put(write(folder / "x.beton", ["jpg" if k % 3 else "raw" for k in range(N)]), "x.beton")
        split = SplitManifest(**ref.as_dict(), num_images=N)
        self.path = Path(ref.uri)
        self.manifest = DataManifest(name="x", classes=tuple("0123456789"), splits={"train": split}, encode={})
        self.store = store
        self.ffcv, self.native = self.open("ffcv"), self.open("native")

    def open(self, engine: Any) -> Loader:
        return open_loader(
            self.manifest, "train", self.store, engine=engine, batch_size=30, resolution=72, seed=2**40 + 3, train=True,
            num_threads=2, crop=RandomResizedCrop((0.05, 1.0), (0.4, 2.5)), hflip=0.5, drop_last=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    import torch

    torch.set_num_threads(2)
    made = Engines(tmp_path_factory.mktemp("engines"))
    assert torch.get_num_threads() == 2, "importing FFCV or making a loader changed torch's threads"
    assert (made.ffcv.engine, made.native.engine) == ("ffcv", "native")
    return made


def test_engines_give_equal_batches(engines: Engines) -> None:
    seen = []
    for epoch in (0, 1):
        ours, theirs = list(engines.native.epoch(epoch)), list(engines.ffcv.epoch(epoch))
        assert [len(batch.labels) for batch in theirs] == [30, 30, 30, 30, 10]
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.indices, other.indices)
            assert np.array_equal(one.labels, other.labels)
            assert np.array_equal(one.images, other.images)
        seen.append(b"".join(batch.images.tobytes() for batch in theirs))
    assert seen[0] != seen[1]


def test_ffcv_goes_on_at_any_batch_of_any_epoch(engines: Engines) -> None:
    """Also the other way round: what one engine began the other goes on with."""
    for epoch, start in ((7, 3), (1, 0), (7, 5)):
        tail = list(engines.ffcv.epoch(epoch, start))
        expected = list(engines.native.epoch(epoch))[start:]
        assert [b.images.tobytes() for b in tail] == [b.images.tobytes() for b in expected]


def test_ffcv_leaves_no_thread_and_no_setting_behind(engines: Engines) -> None:
    import torch

    torch.set_num_threads(2)
    for epoch in range(5):
        with engines.ffcv.epoch(epoch) as batches:
            next(batches)
    assert torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "ffcv-loader"]


def test_two_epochs_at_once_do_not_disturb_each_other(engines: Engines) -> None:
    expected = [b.images.tobytes() for e in (2, 3) for b in engines.native.epoch(e)]
    with engines.ffcv.epoch(2) as two, engines.ffcv.epoch(3) as three:
        pairs = [(a.images.tobytes(), b.images.tobytes()) for a, b in zip(two, three, strict=True)]
    assert [a for a, _ in pairs] + [b for _, b in pairs] == expected


def test_a_dying_ffcv_thread_is_an_error_and_not_a_hang(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, calls = ffcv_engine._decode, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise SystemError("as FFCV's compiled code does on a wrong mode")
        return decoded(*arguments)

    monkeypatch.setattr(ffcv_engine, "_decode", dies)
    began = time.monotonic()
    batches = engines.ffcv.epoch(0)
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(RuntimeError, match="thread ended") as caught:
        next(batches)
    assert isinstance(caught.value.__cause__, SystemError)
    assert time.monotonic() - began < 60


def test_an_image_that_ffcv_cannot_decode_is_named(engines: Engines) -> None:
    """FFCV ignores what libjpeg-turbo reports and returns whatever the buffer held."""
    file = BetonFile(engines.path)
    start, size = int(file.pointers[70]), int(file.sizes[70])
    assert file.modes[70] == 0
    whole = engines.path.read_bytes()
    try:
        with engines.path.open("r+b") as opened:
            opened.seek(start + size // 2)
            opened.write(b"\xff\xd9" * 200)
        with pytest.raises(UserError, match="sample 70 cannot be decoded"):
            list(engines.ffcv.epoch(0))
        with pytest.raises(UserError, match="sample 70 cannot be decoded"):
            list(engines.native.epoch(0))
    finally:
        with engines.path.open("r+b") as opened:
            opened.write(whole)
    assert len(list(engines.ffcv.epoch(0))) == 5
