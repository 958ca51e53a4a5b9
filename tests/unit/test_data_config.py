"""The digest of a source: equal for equal images in any place, different for others; unreadable files are one line."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from components.data.config import EncodeConfig, source_digest
from components.errors import UserError
from pipeline.plan import fingerprints
from pipeline.recipe import build
from tests.recipes import small


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "0.png").write_bytes(name.encode() * 100)
    return root


def digest(root: Path, cache: Path | None = None) -> str:
    return source_digest(EncodeConfig(source=str(root)), cache=cache)


def same_times(one: Path, other: Path) -> None:
    for path in one.rglob("*.png"):
        os.utime(other / path.relative_to(one), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))


def test_two_folders_with_equal_names_sizes_and_times_have_different_digests(images: Path, tmp_path: Path) -> None:
    """As two exports of the same camera unpacked with their times: only the pixels differ."""
    other = Path(shutil.copytree(images, tmp_path / "other"))
    (other / "train" / "a" / "0.png").write_bytes(b"z" * 100)
    same_times(images, other)
    assert digest(images, tmp_path / "cache") != digest(other, tmp_path / "cache")


def test_new_pixels_under_the_old_time_are_noticed(images: Path, tmp_path: Path) -> None:
    before, path = digest(images, tmp_path / "cache"), images / "train" / "a" / "0.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"z" * 100)
    os.utime(path, ns=times)
    assert digest(images, tmp_path / "cache") != before


def prints(tmp_path: Path, **digits: object) -> dict[str, str]:
    return fingerprints(build(small(digits=digits)), tmp_path / "cache")


def test_a_set_that_was_moved_or_renamed_is_the_same_work(images: Path, tmp_path: Path) -> None:
    first = prints(tmp_path, source=str(images))
    moved = Path(shutil.copytree(images, tmp_path / "deep" / "elsewhere"))
    assert prints(tmp_path, source=str(moved)) == first
    assert prints(tmp_path, source=str(moved), name="pets") == first
    (moved / "train" / "b" / "0.png").write_bytes(b"other")
    assert set(prints(tmp_path, source=str(moved)).values()).isdisjoint(first.values())


def test_an_archive_may_have_another_name(tmp_path: Path) -> None:
    for name, content in (("one.tar", b"x"), ("two.tar", b"x"), ("three.tar", b"y")):
        (tmp_path / name).write_bytes(content)
    assert digest(tmp_path / "one.tar") == digest(tmp_path / "two.tar") != digest(tmp_path / "three.tar")


def test_built_in_sets_have_different_fingerprints(tmp_path: Path) -> None:
    one, other = prints(tmp_path, source="digits"), prints(tmp_path, source="shapes")
    assert set(one.values()).isdisjoint(other.values())


def test_a_cache_that_cannot_be_written_or_read_only_costs_time(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert digest(images, tmp_path / "file") == digest(images)
    digest(images, tmp_path / "cache")
    [kept] = (tmp_path / "cache" / "source-digests").iterdir()
    kept.write_text('{"sha2')
    assert digest(images, tmp_path / "cache") == digest(images)


def dangling(root: Path) -> str:
    (root / "train" / "a" / "1.png").symlink_to("nowhere.png")
    return "train/a/1.png: the target of this link does not exist"


def loop(root: Path) -> str:
    (root / "train" / "a" / "again").symlink_to(root / "train")
    return "train/a/again: this link leads back to a folder that contains it"


def link_to_itself(root: Path) -> str:
    (root / "train" / "a" / "1.png").symlink_to("1.png")
    return "train/a/1.png: the target of this link does not exist"


def not_utf8(root: Path) -> str:
    (root / "train" / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    return "this file's name is not UTF-8 (got 'train/a/caf\\udce9.png')"


def pipe(root: Path) -> str:
    os.mkfifo(root / "train" / "a" / "1.png")
    return "train/a/1.png: this is not a regular file"


@pytest.mark.parametrize("wrong", [dangling, loop, link_to_itself, not_utf8, pipe])
def test_a_file_that_cannot_be_read_is_named_in_one_line(images: Path, wrong: object) -> None:
    expected = wrong(images)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        digest(images)
    assert expected in str(caught.value)
    assert str(images) in str(caught.value)


def test_a_class_may_be_a_link(images: Path, tmp_path: Path) -> None:
    whole = digest(images)
    (images / "train" / "b").rename(tmp_path / "b")
    (images / "train" / "b").symlink_to(tmp_path / "b")
    assert digest(images) == whole


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "train/a/Thumbs.db", "README.txt", "train/a/._0.png", ".git/config.png", "train/a/desktop.ini"],
)
def test_files_that_are_not_read_do_not_change_the_digest(images: Path, tmp_path: Path, name: str) -> None:
    """A file manager that looked at the folder must not mean that everything is trained again."""
    before = prints(tmp_path, source=str(images))
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).write_bytes(b"x")
    assert prints(tmp_path, source=str(images)) == before
    (images / "train" / "a" / "1.pgm").write_bytes(b"x")
    assert prints(tmp_path, source=str(images)) != before


def test_the_digest_of_a_folder_of_images_alone_is_that_of_all_its_files(images: Path) -> None:
    """As it was before files that are not read were left out."""
    for name in ("train/a/1.jpg", "train/a-b/0.png", "val/a/0.png", "val/b/0.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(name.encode())
    whole = hashlib.sha256()
    for folder, names, files in os.walk(images):
        names.sort()
        for file in sorted(files):
            path = Path(folder, file)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(images).as_posix()}\0{content}\n".encode())
    assert digest(images) == whole.hexdigest()


def test_the_digest_of_a_bucket_is_of_its_images() -> None:
    config = EncodeConfig(source="s3://bucket/pets")
    listing = [("train/a/0.png", 1, "x"), ("train/b/0.png", 2, "y")]
    junk = [(".DS_Store", 3, "z"), ("train/a/._0.png", 4, "z"), ("README.md", 5, "z")]
    whole = source_digest(config, list_prefix=lambda uri: listing)
    assert source_digest(config, list_prefix=lambda uri: listing + junk) == whole
    assert source_digest(config, list_prefix=lambda uri: [*listing, ("train/b/1.png", 3, "z")]) != whole
