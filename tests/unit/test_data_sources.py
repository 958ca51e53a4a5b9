"""Sources of images: built-in sets, folders, archives, and the errors for unusable ones."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from components.data import sources
from components.data.config import EncodeConfig, source_classes, source_digest
from components.data.sources import open_source
from components.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Builds an ImageNet-layout folder from {split: {class: number of images}}."""

    def build(**splits: dict[str, int]) -> Path:
        root, rng = tmp_path / "images", np.random.default_rng(0)
        for split, classes in splits.items():
            for name, count in classes.items():
                (root / split / name).mkdir(parents=True)
                for k in range(count):
                    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
                    Image.fromarray(pixels).save(root / split / name / f"{k}.png")
        return root

    return build


def test_digits_have_their_fixed_split(tmp_path: Path) -> None:
    source = open_source(EncodeConfig(source="digits"), tmp_path)
    assert source.classes == tuple("0123456789")
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 1438, "val": 359}
    assert min(Counter(item.label for item in source.splits["val"]).values()) >= 34
    with Image.open(source.splits["train"][0].path) as image:
        assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "PNG")


def test_shapes_are_twelve_even_classes(tmp_path: Path) -> None:
    source = open_source(EncodeConfig(source="shapes"), tmp_path)
    assert len(source.classes) == 12
    assert set(Counter(item.label for item in source.splits["train"]).values()) == {150}
    assert set(Counter(item.label for item in source.splits["val"]).values()) == {30}


def test_shapes_are_the_same_every_time_and_all_different() -> None:
    one, same = ([image.tobytes() for _, _, image in itertools.islice(sources.draw_shapes(), 60)] for _ in range(2))
    assert one == same
    assert len(set(one)) == 60


def test_labels_follow_sorted_class_names(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"zebra": 3, "ant": 2}, val={"ant": 1})
    source = open_source(EncodeConfig(source=str(root)), tmp_path / "w")
    assert source.classes == ("ant", "zebra")
    assert [item.label for item in source.splits["train"]] == [0, 0, 1, 1, 1]
    assert source.notes == ("val has no images of 1 of 2 classes, which no figure covers: zebra",)


@pytest.mark.parametrize("name", ["valid", "Val", "validation", "VAL"])
def test_a_val_folder_is_known_by_its_usual_names(folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    root = folder(train={"a": 3, "b": 3}, val={"a": 1, "b": 2})
    (root / "val").rename(root / name)
    source = open_source(EncodeConfig(source=str(root)), tmp_path / "w")
    assert [Path(item.path).relative_to(root).as_posix() for item in source.splits["val"]] == [
        f"{name}/{image}" for image in ("a/0.png", "b/0.png", "b/1.png")
    ]
    assert len(source.splits["train"]) == 6
    assert source.notes == ()


def test_what_is_not_used_is_named(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 3, "b": 3}, val={"a": 1, "b": 2}, test={"a": 1}, extra={"b": 1})
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "val" / "b" / "2.heic").write_text("x")
    (root / "val" / "b" / ".DS_Store").write_text("x")
    assert open_source(EncodeConfig(source=str(root)), tmp_path / "w").notes == (
        "not used: folders extra, test",
        "not used: 2 files of class folders that are no images by their endings (1 .heic, 1 .txt)",
    )


def mistakes(root: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """Name -> how to make the mistake in a set of two classes, and what is written about it."""
    train, val = root / "train", root / "val"
    return {
        "no train": (lambda: train.rename(root / "images"), "source: there is no folder `train` in it (got '{root}')"),
        "Train": (lambda: train.rename(root / "Train"), "no folder `train` in it, did you mean 'Train'?"),
        "empty": (lambda: [shutil.rmtree(path) for path in (train, val)], "source: there is no folder `train` in it"),
        "no classes": (lambda: [shutil.rmtree(train), train.mkdir()], "{root}/train: there are no class folders in it"),
        "one class": (
            lambda: [shutil.rmtree(path / "a") for path in (train, val)],
            "{root}: there is only one class, which every model gets right (got 'b')",
        ),
        "empty class": (lambda: (train / "c").mkdir(), "{root}/train/c: this class folder has no images"),
        "empty class of val": (lambda: (val / "c").mkdir(), "{root}/val/c: this class folder has no images"),
        "only in val": (
            lambda: shutil.copytree(val / "a", val / "aa"),
            "{root}/val/aa: val has a class that train lacks",
        ),
        "loose image": (
            lambda: (train / "a" / "0.png").rename(train / "0.png"),
            "{root}/train/0.png: this image is in no class folder. move it, and all others like it, to train/<class>/",
        ),
        "deep image": (
            lambda: [(train / "a" / "x").mkdir(), (train / "a" / "0.png").rename(train / "a" / "x" / "0.png")],
            "{root}/train/a/x/0.png: this image is in a folder of a class",
        ),
        "two vals": (
            lambda: shutil.copytree(val, root / "Valid"),
            "{root}/: several folders could hold the validation images: Valid, val",
        ),
        "test": (
            lambda: val.rename(root / "test"),
            "{root}/: there is no folder `val`, and it is not clear what `test` is for. rename it to `val`",
        ),
    }


@pytest.mark.parametrize("name", [*mistakes(Path())])
def test_an_unusable_layout_is_refused_when_planned_and_when_encoded(
    folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    root = folder(train={"a": 3, "b": 3}, val={"a": 1, "b": 2})
    config = EncodeConfig(source=str(root))
    assert source_classes(config) == ("a", "b")
    make, message = mistakes(root)[name]
    make()
    for refuses in (lambda: source_classes(config), lambda: open_source(config, tmp_path / "w")):
        with pytest.raises(UserError, match=re.escape(message.format(root=root))):
            refuses()


def test_classes_of_other_sources_are_known_later_and_other_files_are_refused(tmp_path: Path) -> None:
    assert source_classes(EncodeConfig(source="digits")) is None
    assert source_classes(EncodeConfig(source="s3://bucket/x")) is None
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    assert source_classes(EncodeConfig(source=str(tmp_path / "a.tar"))) is None
    for name in ("page.html", "page.tar"):
        (tmp_path / name).write_text("<!DOCTYPE html>")
        with pytest.raises(UserError, match=rf"source: this is no folder and no tar archive .*{name}"):
            source_classes(EncodeConfig(source=str(tmp_path / name)))


def test_a_missing_val_is_split_off_and_noted(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 20, "b": 10})
    config = EncodeConfig(source=str(root), val_fraction=0.2, seed=4)
    one, same = (open_source(config, tmp_path / "w") for _ in range(2))
    assert Counter(item.label for item in one.splits["val"]) == {0: 4, 1: 2}
    assert not set(one.splits["val"]) & set(one.splits["train"])
    assert len(one.splits["train"]) == 24
    assert one == same
    assert "6 of 30 train images were held out (seed 4)" in one.notes[0]
    other = open_source(EncodeConfig(source=str(root), val_fraction=0.2, seed=5), tmp_path / "w")
    assert other.splits["val"] != one.splits["val"]


def test_limits_are_even_over_classes_and_noted(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 20, "b": 10}, val={"a": 3, "b": 3})
    source = open_source(EncodeConfig(source=str(root), max_train_images=8, max_val_images=100), tmp_path / "w")
    assert Counter(item.label for item in source.splits["train"]) == {0: 4, 1: 4}
    assert len(source.splits["val"]) == 6
    assert source.notes == ("train was limited to 8 of 30 images (seed 0)",)


def test_an_archive_is_read_as_its_folder(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 4, "b": 4}, val={"a": 1, "b": 1})
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(root, "my-set")
    source = open_source(EncodeConfig(source=str(tmp_path / "set.tar.gz")), tmp_path / "w")
    assert (source.name, source.classes, len(source.splits["train"])) == ("set", ("a", "b"), 8)


def test_the_ending_of_an_archive_may_be_in_upper_case(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 4, "b": 4}, val={"a": 1, "b": 1})
    with tarfile.open(tmp_path / "Set.TAR", "w") as tar:
        tar.add(root, "my-set")
    source = open_source(EncodeConfig(source=str(tmp_path / "Set.TAR")), tmp_path / "w")
    assert (source.name, len(source.splits["train"])) == ("Set", 8)


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../escaped.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match="not safe to unpack"):
        open_source(EncodeConfig(source=str(tmp_path / "evil.tar")), tmp_path / "w" / "deep")
    assert not list(tmp_path.rglob("escaped.png"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_broken_archive_is_refused_and_not_trusted_later(
    folder: Callable[..., Path], tmp_path: Path, ending: str
) -> None:
    root = folder(train={"a": 40, "b": 40})
    archive = tmp_path / f"set.{ending}"
    with tarfile.open(archive, f"w:{ending[4:]}") as tar:
        tar.add(root, "set")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    config = EncodeConfig(source=str(archive))
    with pytest.raises(UserError, match=r"set\.tar.*not a complete tar archive"):
        open_source(config, tmp_path / "w")
    archive.write_bytes(whole)
    assert len(open_source(config, tmp_path / "w").splits["train"]) == 72


def test_an_s3_prefix_is_fetched_by_the_store(folder: Callable[..., Path], tmp_path: Path) -> None:
    root, asked = folder(train={"a": 4, "b": 4}), []

    def fetch(uri: str, to: Path) -> Path:
        asked.append((uri, to))
        return root

    source = open_source(EncodeConfig(source="s3://bucket/pets"), tmp_path / "w", fetch_prefix=fetch)
    assert (source.name, source.classes) == ("pets", ("a", "b"))
    assert asked == [("s3://bucket/pets", tmp_path / "w" / "fetched")]


def test_errors_name_the_place_and_the_remedy(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"cat": 2, "dog": 2}, val={"cat": 1, "dgo": 1})
    with pytest.raises(UserError, match=r"val/dgo.*did you mean 'dog'"):
        open_source(EncodeConfig(source=str(root)), tmp_path / "w")
    (root / "val" / "dgo").rename(root / "val" / "dog")
    (root / "train" / "empty").mkdir()
    (root / "train" / "empty" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"train/empty.*has no images"):
        open_source(EncodeConfig(source=str(root)), tmp_path / "w")
    with pytest.raises(UserError, match=r"no such folder.*did you mean 'digits'"):
        open_source(EncodeConfig(source="digit"), tmp_path / "w")
    (tmp_path / "flat" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="no folder `train`"):
        open_source(EncodeConfig(source=str(tmp_path / "flat")), tmp_path / "w")


def test_hidden_and_foreign_files_are_ignored(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 2, "b": 2}, val={"a": 1})
    (root / "train" / "a" / "._0.png").write_bytes(b"AppleDouble")
    (root / "train" / "a" / "README.md").write_text("x")
    assert len(open_source(EncodeConfig(source=str(root)), tmp_path / "w").splits["train"]) == 4


def test_the_digest_follows_content_and_names_and_is_cached(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train={"a": 2, "b": 2})
    config, cache = EncodeConfig(source=str(root)), tmp_path / "cache"
    first = source_digest(config, cache=cache)
    assert first == source_digest(config) == source_digest(config, cache=cache)
    (kept,) = (cache / "source-digests").iterdir()
    kept.write_text(kept.read_text().replace(first, "0" * 64))
    assert source_digest(config, cache=cache) == "0" * 64
    (root / "train" / "a" / "0.png").rename(root / "train" / "a" / "00.png")
    assert source_digest(config, cache=cache) not in (first, "0" * 64)
    (root / "train" / "a" / "00.png").rename(root / "train" / "b" / "9.png")
    moved = source_digest(config, cache=cache)
    assert moved not in (first, "0" * 64)
    (root / "train" / "b" / "9.png").write_bytes(b"other")
    assert source_digest(config, cache=cache) != moved


def test_the_digest_of_other_sources() -> None:
    assert source_digest(EncodeConfig(source="digits")) == "digits/1"
    listing = [("train/b.png", 2, "y"), ("train/a.png", 1, "x")]
    config = EncodeConfig(source="s3://bucket/x")
    digest = source_digest(config, list_prefix=lambda uri: listing)
    assert digest == source_digest(config, list_prefix=lambda uri: listing[::-1])
    assert digest != source_digest(config, list_prefix=lambda uri: [("train/b.png", 2, "z"), ("train/a.png", 1, "x")])
    with pytest.raises(UserError, match="nowhere"):
        source_digest(EncodeConfig(source="/nowhere"))


@pytest.mark.parametrize(
    "wrong", [{"max_short_side": 4}, {"mode": "png"}, {"quality": 101}, {"page_size": 3000000}, {"sid": 32}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EncodeConfig.model_validate({"source": "digits", **wrong})
