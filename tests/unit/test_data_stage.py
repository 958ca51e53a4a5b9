"""The encode stage as a whole: manifest, stored files, a second attempt, and errors that leave no manifest."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data import stage
from components.data.beton_reader import BetonFile
from components.data.config import EncodeConfig
from components.data.loader import open_loader
from components.data.manifest import read_manifest
from components.errors import UserError
from components.store.objects import ObjectStore


class Run:
    """The part of a StageRun that the stage uses."""

    def __init__(self, workdir: Path) -> None:
        self.workdir, self.saved, self.phases = workdir, {}, []
        self.messages: list[str] = []
        self.params: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        workdir.mkdir(exist_ok=True)

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        self.phases.append((phase, done, total))

    def info(self, text: str) -> None:
        self.messages.append(text)

    def log_params(self, params: dict[str, Any]) -> None:
        self.params.update(params)

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        self.metrics.update(metrics)

    def save(self, local: Path, artifact: str) -> None:
        self.saved[artifact] = local.read_text()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root, rng = tmp_path / "pets", np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for k in range(15):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(root / "train" / name / f"{k}.png")
    return root


def job(tmp_path: Path, source: Path | str, **options: Any) -> Any:
    config = EncodeConfig(source=str(source), max_short_side=16, **options).model_dump(mode="json")
    store = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    spec = SimpleNamespace(config=config, fingerprint="f" * 64)
    return SimpleNamespace(spec=spec, run=Run(tmp_path / "work"), objects=store, inputs={})


def test_one_error_names_the_unreadable_images_of_both_splits(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "train", images / "val")
    broken = [images / split / "cat" / "3.png" for split in ("train", "val")]
    for path in broken:
        path.write_bytes(b"")
    work = job(tmp_path, images)
    with pytest.raises(UserError, match=rf"^2 images cannot be read: {broken[0]} \(.*\); {broken[1]} \("):
        stage.run(work)
    broken[0].unlink()
    with pytest.raises(UserError, match=rf"^{broken[1]}: this image cannot be read"):
        stage.run(job(tmp_path, images))
    broken[1].unlink()
    assert stage.run(job(tmp_path, images))["val"] == 29


def test_a_folder_becomes_a_manifest_and_two_files(images: Path, tmp_path: Path) -> None:
    work = job(tmp_path, images, val_fraction=0.2)
    result = stage.run(work)
    assert {key: result[key] for key in ("dataset", "classes", "train", "val")} == {
        "dataset": "pets",
        "classes": 2,
        "train": 24,
        "val": 6,
    }
    assert "6 of 30 train images were held out" in result["notes"][0]
    assert work.run.messages == result["notes"]
    manifest = read_manifest(tmp_path / "work" / "manifest.json")
    assert set(work.run.saved) == {"manifest.json", "val-names.json"}
    assert work.run.saved["manifest.json"] == (tmp_path / "work" / "manifest.json").read_text()
    names = json.loads(work.run.saved["val-names.json"])
    assert [name.split("/")[0] for name in names] == ["cat"] * 3 + ["dog"] * 3
    assert names == sorted(names)
    assert all((images / "train" / name).is_file() for name in names)
    assert manifest.classes == ("cat", "dog")
    assert {name: split.num_images for name, split in manifest.splits.items()} == {"train": 24, "val": 6}
    train, val = (BetonFile(work.objects.get(manifest.splits[name].object_ref)) for name in ("train", "val"))
    assert val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (train.heights.max(), train.widths.max()) == (16, 21)
    assert ("encode train", 24, 24) in work.run.phases
    loaded = open_loader(manifest, "val", work.objects, batch_size=4, resolution=16, seed=0, train=False)
    assert [len(batch.labels) for batch in loaded.epoch(0)] == [4, 2]


def test_an_interrupted_stage_keeps_the_finished_split(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encoded = stage.encode_split, []

    def dies_at_val(items: Any, path: Path, *rest: Any, **options: Any) -> None:
        encoded.append(path.name)
        if path.name == "val.beton" and encoded.count("val.beton") == 1:
            raise KeyboardInterrupt
        whole(items, path, *rest, **options)

    monkeypatch.setattr(stage, "encode_split", dies_at_val)
    work = job(tmp_path, images)
    with pytest.raises(KeyboardInterrupt):
        stage.run(work)
    assert not work.run.saved
    stage.run(work)
    assert encoded == ["train.beton", "val.beton", "val.beton"]
    assert work.run.saved


def test_a_damaged_leftover_is_encoded_again(images: Path, tmp_path: Path) -> None:
    work = job(tmp_path, images)
    first = stage.run(work)
    path = tmp_path / "work" / "train.beton"
    whole = path.read_bytes()
    path.write_bytes(whole[:-24])
    assert stage.run(work) == first
    assert path.read_bytes() == whole


def test_errors_leave_no_manifest(images: Path, tmp_path: Path) -> None:
    (images / "train" / "dog" / "3.png").write_bytes(b"no image")
    work = job(tmp_path, images)
    with pytest.raises(UserError, match=r"dog/3\.png"):
        stage.run(work)
    assert not work.run.saved
    assert not list((tmp_path / "work").glob("*train.beton*"))
    assert not list((tmp_path / "work").glob("manifest*"))


def test_a_full_store_is_one_error_without_a_manifest(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(local: Path, key: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    work = job(tmp_path, images)
    monkeypatch.setattr(work.objects, "put", full)
    with pytest.raises(UserError, match="no space is left"):
        stage.run(work)
    assert not work.run.saved


def test_the_same_source_gives_the_same_files(images: Path, tmp_path: Path) -> None:
    digests = []
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        stage.run(work := job(tmp_path / name, images, num_workers=workers))
        manifest = read_manifest(work.run.workdir / "manifest.json")
        digests.append([split.sha256 for split in manifest.splits.values()])
    assert digests[0] == digests[1]
