"""Files: written completely or not at all, compared by digest, and one line for a full disk."""

import errno
import os
from pathlib import Path

import pytest

from components import files
from components.errors import UserError
from components.files import FileDigest, digest_file, files_below, mismatch, sha256_file, write_atomically, write_json

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    "content",
    ["new ü", "new ü".encode(), lambda part: part.write_bytes("new ü".encode())],
    ids=["text", "bytes", "call"],
)
@pytest.mark.parametrize("fsync", [True, False])
def test_every_kind_of_content_replaces_the_file(tmp_path, content, fsync):
    path = tmp_path / "folder" / "x.json"
    assert write_atomically(path, b"old") == path
    assert write_atomically(path, content, fsync=fsync) == path
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_writer_sees_a_part_file_in_the_same_folder_and_the_old_file_meanwhile(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def write(part):
        assert part.parent == tmp_path
        assert part.name.startswith(".x.json.")
        assert part.suffix == ".part"
        part.write_text("new")
        assert path.read_text() == "old"

    assert write_atomically(path, write).read_text() == "new"


@pytest.mark.parametrize("fails_in", ["content", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch, fails_in):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    def write(part):
        part.write_text("half")
        if fails_in == "content":
            fail()

    if fails_in != "content":
        monkeypatch.setattr(os, fails_in, fail)
    with pytest.raises(OSError, match="broken"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_the_bytes_are_on_the_disk_before_the_name_is_given(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "fsync_path", lambda path: calls.append((path.suffix, (tmp_path / "x").exists())))
    write_atomically(tmp_path / "x", b"1")
    assert calls == [(".part", False)]
    write_atomically(tmp_path / "x", b"2", fsync=False)
    assert len(calls) == 1


def test_a_new_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert write_atomically(tmp_path / "x", "").stat().st_mode == plain.stat().st_mode


def test_json_is_sorted_and_has_no_nan(tmp_path):
    assert write_json(tmp_path / "x.json", {"b": 1, "a": [0.5]}).read_text() == '{\n "a": [\n  0.5\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", {"a": float("nan")})
    assert not (tmp_path / "y.json").exists()


def test_a_digest_is_the_size_and_the_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert digest_file(tmp_path / "empty") == FileDigest(0, EMPTY)
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_file(tmp_path / "abc").size == 3
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_mismatch_is_named(tmp_path):
    path = tmp_path / "x"
    assert mismatch(path, FileDigest(0, EMPTY)) == "is missing"
    path.write_bytes(b"")
    assert mismatch(path, FileDigest(0, EMPTY)) == ""
    assert mismatch(path, FileDigest(1, EMPTY)) == "has 0 bytes, its manifest says 1"
    assert "another sha256" in mismatch(path, FileDigest(0, EMPTY[::-1]))


def test_files_below_a_folder_are_sorted_and_named_relative_to_it(tmp_path):
    for name in ("b/2", "b/1", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [name for name, _ in files_below(tmp_path)] == ["a", "b/1", "b/2"]
    assert list(files_below(tmp_path / "a")) == [("a", tmp_path / "a")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_with_the_file_and_a_remedy(tmp_path, number):
    with (
        pytest.raises(UserError, match=r"here: no space is left .* ROBUSTRAIN_HOME"),
        files.no_space_as_user_error(tmp_path / "here"),
    ):
        raise OSError(number, "full")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), files.no_space_as_user_error(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_folder_whose_removal_is_interrupted_has_lost_its_name(tmp_path, monkeypatch):
    """A folder with some of its files would be taken for all of them."""
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)

    def interrupted(path, ignore_errors):
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.remove_folder(folder)
    assert not folder.exists()
    (folder / "train").mkdir(parents=True)
    files.remove_folder(folder)
    files.remove_folder(folder)
    assert list(tmp_path.iterdir()) == []
