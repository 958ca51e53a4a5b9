"""Archives that nobody should trust: links, devices, names that lead outside, and bombs."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.data import sources
from components.data.sources import unpack
from components.errors import UserError


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
    return info


def packed(path: Path, members: Sequence[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "deep" / "unpacked"
    found.mkdir(parents=True)
    return found


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("train/a/x.png", tarfile.SYMTYPE, "y.png"), "'train/a/x.png' is a link"),
        (member("train/a/x.png", tarfile.LNKTYPE, "train/a/0.png"), "'train/a/x.png' is a link"),
        (member("train/a/x.png", tarfile.FIFOTYPE), "'train/a/x.png' is a device"),
        (member("train/a/x.png", tarfile.CHRTYPE), "'train/a/x.png' is a device"),
        (member("../x.png"), "outside the destination"),
        (member("train/../../x.png"), "outside the destination"),
    ],
    ids=["symbolic link", "hard link", "pipe", "device", "parent folder", "parent folder inside"],
)
def test_only_regular_files_inside_the_folder_are_taken(
    tmp_path: Path, folder: Path, bad: tarfile.TarInfo, why: str
) -> None:
    path = packed(tmp_path / "evil.tar", [member("train/a/0.png"), bad])
    with pytest.raises(UserError, match=rf"evil\.tar: the archive is not safe to unpack .*{why}"):
        unpack(path, folder)
    assert [item.name for item in tmp_path.rglob("*") if item.is_file()] == ["evil.tar", "0.png"]


def test_a_chain_of_links_too_long_for_the_filter_writes_nothing(tmp_path: Path, folder: Path) -> None:
    """CVE-2025-4517: beyond the longest path of the system, `realpath` gives up, and the filter with it."""
    part, steps = "d" * 247, "abcdefghijklmnop"
    members, here = [], ""
    for step in steps:
        members += [member(f"{here}{part}", tarfile.DIRTYPE), member(f"{here}{step}", tarfile.SYMTYPE, part)]
        here += f"{part}/"
    chain = "/".join(steps) + "/" + "l" * 254
    members += [
        member(chain, tarfile.SYMTYPE, "../" * len(steps)),
        member("escape", tarfile.SYMTYPE, f"{chain}/../../victim"),
        member("alias", tarfile.LNKTYPE, "escape"),
        member("alias"),
    ]
    (tmp_path / "victim").write_text("as before")
    with pytest.raises(UserError, match=r"not safe to unpack \('a' is a link\)"):
        unpack(packed(tmp_path / "evil.tar", members), folder)
    assert (tmp_path / "victim").read_text() == "as before"
    assert not [item for item in folder.rglob("*") if item.is_symlink()]


def test_an_archive_that_grows_too_much_is_refused_before_its_member_is_written(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ALWAYS_TAKEN", 1 << 20)
    big = member("train/a/zeros.bmp")
    big.size = 8 << 20
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member("train/a/0.png"), io.BytesIO(b"abc"))
        tar.addfile(big, io.BytesIO(bytes(big.size)))
    with pytest.raises(UserError, match="more than 100 times its size"):
        unpack(path, folder)
    assert [item.name for item in folder.rglob("*.*")] == ["0.png"]
    monkeypatch.setattr(sources, "ALWAYS_TAKEN", 16 << 20)
    unpack(path, folder)
    assert (folder / "train/a/zeros.bmp").stat().st_size == 8 << 20


def test_many_empty_files_are_a_bomb_too(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ALWAYS_TAKEN", 50_000)
    raw = packed(tmp_path / "plain.tar", [member(f"train/{'a' * 20}/{k}", tarfile.DIRTYPE) for k in range(500)])
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(raw.read_bytes()))
    monkeypatch.setattr(sources, "MOST_GROWTH", 5)
    with pytest.raises(UserError, match="more than 5 times its size"):
        unpack(path, folder)


def test_an_archive_larger_than_the_free_space_is_refused_at_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda at: type("Usage", (), {"free": 1000}))
    path = packed(tmp_path / "set.tar", [member("train/a/0.png"), member("train/a/1.png")])
    with pytest.raises(UserError, match="does not fit on the disk"):
        unpack(path, folder)
