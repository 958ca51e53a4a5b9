"""The native loader: order and pixels, and that batches do not depend on threads, ranks or the start."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data import jpeg, loader
from components.data.beton_writer import HEADER, ROW, BetonWriter
from components.data.crop import CenterCrop, RandomResizedCrop, random_boxes
from components.data.encode import EncodeSettings, encode_pixels
from components.data.loader import Loader, open_loader
from components.data.manifest import DataManifest, SplitManifest
from components.data.randomness import sample_keys
from components.errors import UserError
from components.store.objects import ObjectStore

N = 90


class Encoded:
    """A set of N images in both modes, and loaders on it."""

    def __init__(self, folder: Path) -> None:
        self.store = ObjectStore(str(folder / "objects"), folder / "cache")
        self.folder, rng = folder, np.random.default_rng(0)
        self.images = [_blobs(rng, *rng.integers(30, 90, 2)) for _ in range(N)]
        self.labels = rng.integers(0, 5, N)
        self.manifests = {mode: self._encode(mode) for mode in ("jpg", "raw")}

    def _encode(self, mode: Any) -> DataManifest:
        path = self.folder / f"{mode}.beton"
        with BetonWriter(path, N, page_size=2 << 20) as writer:
            for image, label in zip(self.images, self.labels, strict=True):
                writer.add(encode_pixels(image, int(label), EncodeSettings(512, mode, 95)))
        ref = self.store.put(path, path.name)
        split = SplitManifest(**ref.as_dict(), num_images=N)
        return DataManifest(name="blobs", classes=tuple("abcde"), splits={"train": split}, encode={})

    def open(self, mode: str = "raw", **options: Any) -> Loader:
        settings = {"batch_size": 20, "resolution": 24, "seed": 5, "train": True, **options}
        return open_loader(self.manifests[mode], "train", self.store, **settings)


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    return np.asarray(coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return Encoded(tmp_path_factory.mktemp("encoded"))


def contents(batches: Any) -> list[tuple[bytes, list[int], list[int]]]:
    return [(batch.images.tobytes(), batch.labels.tolist(), batch.indices.tolist()) for batch in batches]


def test_batches_have_the_documented_shapes_and_labels(encoded: Encoded) -> None:
    opened = encoded.open()
    batches = list(opened.epoch(0))
    assert (opened.engine, opened.num_batches, len(batches)) == ("native", 4, 4)
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((20, 24, 24, 3), np.uint8)
        assert (batch.labels.dtype, batch.indices.dtype) == (np.int64, np.int64)
        assert batch.labels.tolist() == encoded.labels[batch.indices].tolist()


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_threads_do_not_change_a_batch(encoded: Encoded, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.data.native_engine.SMALLEST_PIECE", 1)
    one, three = encoded.open(mode, num_threads=1), encoded.open(mode, num_threads=3)
    assert contents(one.epoch(2)) == contents(three.epoch(2))
    assert contents(one.epoch(2)) != contents(one.epoch(3))


def test_an_epoch_goes_on_at_any_batch(encoded: Encoded) -> None:
    opened = encoded.open(drop_last=False)
    whole = contents(opened.epoch(4))
    assert len(whole) == 5
    for start in range(6):
        assert contents(encoded.open(drop_last=False).epoch(4, start)) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches(encoded: Encoded, world_size: int) -> None:
    whole = list(encoded.open(drop_last=False).epoch(1))
    ranks = [
        list(encoded.open(drop_last=False, rank=rank, world_size=world_size).epoch(1)) for rank in range(world_size)
    ]
    for k, batch in enumerate(whole):
        parts = [part[k] for part in ranks]
        assert np.array_equal(np.concatenate([part.images for part in parts]), batch.images)
        assert np.array_equal(np.concatenate([part.indices for part in parts]), batch.indices)


def test_crops_are_cut_where_crop_says(encoded: Encoded) -> None:
    """At full size and without flips a crop of exactly the output's size is copied pixel by pixel."""
    opened = encoded.open(hflip=0.0, crop=RandomResizedCrop((0.2, 0.3)), resolution=24)
    batch = next(opened.epoch(3))
    keys, found = sample_keys(batch.indices, 3), 0
    sizes = np.array([encoded.images[index].shape[:2] for index in batch.indices])
    boxes = random_boxes(RandomResizedCrop((0.2, 0.3)), 5, keys, sizes[:, 0], sizes[:, 1])
    for image, index, (top, left, height, width) in zip(batch.images, batch.indices, boxes, strict=True):
        part = encoded.images[index][top : top + height, left : left + width]
        expected = np.asarray(Image.fromarray(part).resize((24, 24), Image.Resampling.BILINEAR))
        found += np.abs(image.astype(int) - expected).mean() < 6
    assert found >= 18


def test_flips_mirror_about_the_asked_share(encoded: Encoded) -> None:
    plain = list(encoded.open(hflip=0.0).epoch(0))
    mixed = list(encoded.open(hflip=0.5).epoch(0))
    flipped = 0
    for one, other in zip(plain, mixed, strict=True):
        for a, b in zip(one.images, other.images, strict=True):
            assert np.array_equal(a, b) or np.array_equal(a[:, ::-1], b)
            flipped += not np.array_equal(a, b)
    assert 20 <= flipped <= 60


@pytest.mark.parametrize(("resolution", "ratio"), [(24, 0.875), (64, 1.0), (33, 0.8)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(encoded: Encoded, resolution: int, ratio: float) -> None:
    from torchvision.transforms import CenterCrop as TorchCrop
    from torchvision.transforms import Compose, InterpolationMode, Resize

    steps = Compose([Resize(int(resolution / ratio), InterpolationMode.BICUBIC), TorchCrop(resolution)])
    opened = encoded.open(train=False, resolution=resolution, crop=CenterCrop(ratio))
    for batch in opened.epoch(0):
        for image, index in zip(batch.images, batch.indices, strict=True):
            assert np.array_equal(image, np.asarray(steps(Image.fromarray(encoded.images[index]))))
    assert sorted(i for b in opened.epoch(0) for i in b.indices) == list(range(N))


def test_batches_belong_to_the_caller(encoded: Encoded) -> None:
    before = contents(encoded.open().epoch(0))
    batches = []
    for batch in encoded.open().epoch(0):
        batches.append((batch.images.tobytes(), batch.labels.tolist(), batch.indices.tolist()))
        batch.images[:], batch.labels[:], batch.indices[:] = 0, 0, 0
    assert batches == before
    assert contents(encoded.open().epoch(0)) == before


def test_an_epoch_left_early_leaves_nothing_running(encoded: Encoded) -> None:
    opened = encoded.open("jpg")
    for epoch in range(20):
        with opened.epoch(epoch) as batches:
            next(batches)
    assert opened._pool._work_queue.qsize() == 0
    opened.close()
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("loader") and thread in opened._pool._threads
    ]


def test_a_subset_stays_a_subset(encoded: Encoded) -> None:
    chosen = [3, 80, 41, 7, 12]
    opened = encoded.open(indices=chosen, batch_size=2, drop_last=False)
    for epoch in range(2):
        assert sorted(i for b in opened.epoch(epoch) for i in b.indices) == sorted(chosen)
    sequential = encoded.open(indices=chosen, batch_size=2, drop_last=False, order="sequential")
    assert [i for b in sequential.epoch(0) for i in b.indices] == chosen


def test_damage_that_only_reading_finds_is_raised_in_the_caller(encoded: Encoded, tmp_path: Path) -> None:
    manifest = encoded.manifests["jpg"]
    data = bytearray(Path(manifest.splits["train"].uri).read_bytes())
    ptr = int(np.frombuffer(data, ROW, N, 24 + 2 * 1041)["image"]["ptr"][17])
    data[ptr : ptr + 2] = b"\0\0"
    assert np.frombuffer(data, HEADER, 1)["num_samples"][0] == N
    store = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    (tmp_path / "x.beton").write_bytes(data)
    ref = store.put(tmp_path / "x.beton", "x.beton")
    split = manifest.splits["train"].model_copy(update=ref.as_dict())
    opened = open_loader(
        manifest.model_copy(update={"splits": {"train": split}}),
        "train", store, batch_size=30, resolution=24, seed=0, train=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="sample 17 cannot be decoded"):
        list(opened.epoch(0))


def test_a_changed_file_is_refused_by_its_digest(encoded: Encoded, tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    source = Path(encoded.manifests["raw"].splits["train"].uri)
    (tmp_path / "x.beton").write_bytes(source.read_bytes())
    ref = store.put(tmp_path / "x.beton", "x.beton")
    split = encoded.manifests["raw"].splits["train"].model_copy(update=ref.as_dict())
    manifest = encoded.manifests["raw"].model_copy(update={"splits": {"train": split}})
    with Path(ref.uri).open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"\x01")
    with pytest.raises(UserError, match="sha256"):
        open_loader(manifest, "train", store, batch_size=30, resolution=24, seed=0, train=True)


def test_asking_for_ffcv_without_ffcv_is_refused(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.data import ffcv_engine

    monkeypatch.setattr(ffcv_engine, "import_error", lambda: "ImportError: libopencv")
    with pytest.raises(UserError, match=r"FFCV does not import \(ImportError: libopencv\).*make setup"):
        encoded.open(engine="ffcv")
    monkeypatch.setattr(loader, "WORTH_FFCV", 10)
    assert encoded.open(engine="auto").engine == "native"
    assert encoded.open(engine="ffcv", train=False).engine == "native"


def test_auto_takes_ffcv_for_large_training_sets(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.data import ffcv_engine

    class Stub:
        name = "ffcv"

        def __init__(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr(ffcv_engine, "import_error", lambda: "")
    monkeypatch.setattr(ffcv_engine, "FfcvEngine", Stub)
    assert encoded.open(engine="auto").engine == "native"
    monkeypatch.setattr(loader, "WORTH_FFCV", N)
    assert encoded.open(engine="auto").engine == "ffcv"
    assert encoded.open(engine="native").engine == "native"
    assert encoded.open(engine="auto", train=False).engine == "native"


def test_the_loader_names_its_jpeg_decoder(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoded.open("jpg").jpeg_decoder == "libjpeg-turbo"
    turbo = list(encoded.open("jpg").epoch(0))
    monkeypatch.setattr(jpeg, "_turbo", lambda: None)
    opened = encoded.open("jpg")
    assert opened.jpeg_decoder == "opencv"
    assert encoded.open("raw").jpeg_decoder == "none"
    for one, other in zip(turbo, opened.epoch(0), strict=True):
        assert np.abs(one.images.astype(int) - other.images).max() <= 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 91}, "do not fill one batch"),
        ({"world_size": 3}, "does not divide"),
        ({"indices": [90]}, "no such sample"),
    ],
)
def test_impossible_requests_are_refused(encoded: Encoded, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        encoded.open(**options)


def test_an_unknown_split_is_refused(encoded: Encoded) -> None:
    with pytest.raises(UserError, match=r"no such split.*test"):
        open_loader(encoded.manifests["raw"], "test", encoded.store, batch_size=2, resolution=24, seed=0, train=False)
