"""Checkpoints that are incomplete, damaged or of another stage."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from components.errors import UserError
from components.train import checkpoint, checkpoint_manager
from components.train.checkpoint import Snapshot, read_checkpoint, write_checkpoint
from components.train.checkpoint_manager import CheckpointManager, CheckpointThreads
from components.train.monitor import require_finite

MINE = "f" * 64


def _snapshot(step, epoch=0):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model": {"w": torch.randn(4, 3, generator=generator)},
        "optimizer": {"w/step": torch.tensor(float(step))},
    }
    return Snapshot(tensors, {"step": step, "epoch": epoch, "batch": 1, "history": [{"loss": 0.1 + step}]})


def _same(one, other):
    assert one is not None
    assert dict(one.metadata) == dict(other.metadata)
    for group, tensors in other.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(one.tensors[group][name], tensor)


@pytest.fixture
def store(tmp_path):
    opened = CheckpointManager(tmp_path / "checkpoints", MINE)
    yield opened
    opened.close()


def test_comes_back_as_it_was_and_the_previous_one_is_kept(store):
    for step in (1, 2, 10):
        store.save(_snapshot(step), wait=True)
    _same(store.latest(), _snapshot(10))
    assert len(list(store.folder.glob("step-*"))) == 2


def test_written_beside_the_training(store):
    store.save(_snapshot(1))
    store.save(_snapshot(2))
    store.wait_until_written()
    assert not store.busy
    _same(store.latest(), _snapshot(2))


def _damage(place, how):
    tensors, state, manifest = place / "model.safetensors", place / "state.json", place / "manifest.json"
    if how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif how == "flipped bit":
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(bytes(data))
    elif how == "changed state":
        state.write_text(state.read_text().replace('"batch": 1', '"batch": 2'))
    elif how == "missing file":
        tensors.unlink()
    elif how == "no manifest":
        manifest.unlink()
    elif how == "empty manifest":
        manifest.write_text("")
    elif how == "manifest of something else":
        manifest.write_text("[1, 2]")
    elif how == "foreign":
        manifest.write_text(manifest.read_text().replace(MINE, "0" * 64))


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "flipped bit",
        "changed state",
        "missing file",
        "no manifest",
        "empty manifest",
        "manifest of something else",
        "foreign",
    ],
)
def test_a_damaged_one_is_refused_with_a_warning_and_the_previous_one_used(store, caplog, how):
    store.save(_snapshot(1), wait=True)
    store.save(_snapshot(2), wait=True)
    newest = sorted(store.folder.glob("step-*"))[-1]
    _damage(newest, how)
    with pytest.raises(ValueError, match=r"it |model|state"):
        read_checkpoint(newest, MINE)
    _same(store.latest(), _snapshot(1))
    text = caplog.text
    assert "is not used" in text
    assert newest.name in text


def test_a_manifest_cannot_point_outside(store, tmp_path):
    place = write_checkpoint(tmp_path / "other", _snapshot(1), MINE)
    manifest = place / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"state.json"', '"../state.json"'))
    with pytest.raises(ValueError, match="outside"):
        read_checkpoint(place, MINE)


def test_nothing_valid_means_a_fresh_start(store, caplog):
    assert store.latest() is None
    store.save(_snapshot(1), wait=True)
    _damage(next(store.folder.glob("step-*")), "truncated")
    assert store.latest() is None
    assert "starts from its beginning" in caplog.text


@pytest.mark.parametrize("dies_in", ["save_file", "write_json", "replace"])
def test_dying_while_writing_leaves_the_previous_one(store, monkeypatch, dies_in):
    store.save(_snapshot(1), wait=True)

    def dies(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if dies_in == "replace" else (checkpoint, dies_in)), dies)
        with pytest.raises(OSError, match="No space"):
            store.save(_snapshot(2), wait=True)
    _same(store.latest(), _snapshot(1))
    assert not list(store.folder.glob(".part-*")), "the rest of the failed one is removed"
    store.save(_snapshot(3), wait=True)
    _same(store.latest(), _snapshot(3))


def test_a_failed_write_in_the_thread_is_not_lost(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: (_ for _ in ()).throw(OSError("gone")))
    store.save(_snapshot(1))
    with pytest.raises(OSError, match="gone"):
        store.wait_until_written()


def test_a_failed_write_is_reported_by_the_next_save(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *a: (_ for _ in ()).throw(OSError("gone")))
        store.save(_snapshot(1))
        while store.busy:
            time.sleep(0.01)
    with pytest.raises(OSError, match="gone"):
        store.save(_snapshot(2))
    store.save(_snapshot(3), wait=True)
    _same(store.latest(), _snapshot(3))


def test_files_are_on_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    """Otherwise a power failure could leave a complete name on incomplete files."""
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def renamed(source, target):
        calls.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    place = write_checkpoint(tmp_path / "folder", _snapshot(1), MINE)
    renaming = calls.index(("rename", place.name))
    before = {name for call, name in calls[:renaming] if call == "sync"}
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} <= before
    assert ("sync", "folder") in calls[renaming:], "the new name is on disk too"


class Remote:
    """The run's artifacts, in a folder; an upload can be cut off or held up."""

    def __init__(self, folder):
        self.folder, self.cut, self.gate, self.done = folder, False, threading.Event(), []
        self.gate.set()

    def upload(self, local, artifact):
        self.gate.wait(30)
        to = self.folder / artifact
        if local.is_file():
            shutil.copyfile(local, to)
            return
        for number, file in enumerate(sorted(local.iterdir())):
            if self.cut and number:
                raise ConnectionError("cut off")
            to.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to / file.name)
        self.done.append(local.name)

    def fetch(self, artifact, to):
        found = self.folder / artifact
        if not found.exists():
            return None
        to.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copytree(found, to) if found.is_dir() else shutil.copyfile(found, to)

    def store(self, disk):
        return CheckpointManager(disk, MINE, upload=self.upload, fetch=self.fetch)


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path / "remote")


def _life(remote, disk, *steps):
    """One machine's training: what it finds, and then its checkpoints."""
    store = remote.store(disk)
    found = store.latest()
    for step in steps:
        store.save(_snapshot(step), wait=True)
        store._threads.copy.submit(lambda: None).result()
    store.close()
    return found


def test_artifacts_serve_where_the_disk_is_new(remote, tmp_path, caplog):
    _life(remote, tmp_path / "one", 1, 2, 3)
    _same(_life(remote, tmp_path / "two"), _snapshot(3))
    newest = max(remote.folder.glob("checkpoints/?"), key=lambda p: read_checkpoint(p, MINE).step)
    _damage(newest, "flipped bit")
    _same(_life(remote, tmp_path / "three"), _snapshot(2))
    assert "is not used" in caplog.text


@pytest.mark.parametrize("written", ["", '{"place": "c"}', None], ids=["empty", "another name", "missing"])
def test_without_the_name_of_the_complete_copy_the_newer_one_counts(remote, tmp_path, written):
    _life(remote, tmp_path / "one", 1, 2)
    text = remote.folder / "checkpoints" / "latest.json"
    text.unlink()
    if written is not None:
        text.write_text(written)
    _same(_life(remote, tmp_path / "two", 3), _snapshot(2))
    remote.cut = True
    _same(_life(remote, tmp_path / "three", 4), _snapshot(3))
    _same(_life(remote, tmp_path / "four"), _snapshot(3))


@pytest.mark.parametrize("before", [1, 2, 3])
def test_an_upload_cut_off_at_any_time_leaves_the_copy_before(remote, tmp_path, before):
    """Each life has a new disk, so that the next one can only resume from the artifacts."""
    for step in range(1, before + 1):
        _life(remote, tmp_path / f"life-{step}", step)
    remote.cut = True
    _same(_life(remote, tmp_path / "cut", 8, 9), _snapshot(before))
    remote.cut = False
    _same(_life(remote, tmp_path / "next", 10), _snapshot(before))
    _same(_life(remote, tmp_path / "last"), _snapshot(10))


def test_a_checkpoint_is_on_disk_before_any_upload_has_ended(remote, tmp_path):
    """A machine that is asked to end has seconds; the network may take minutes."""
    remote.gate.clear()
    store = remote.store(tmp_path / "disk")
    for step in (1, 2, 3, 4):
        store.save(_snapshot(step), wait=True)
    _same(remote.store(tmp_path / "disk").latest(), _snapshot(4))
    assert remote.done == []
    remote.gate.set()
    store.close()
    assert [name[:14] for name in remote.done] == ["step-000000001", "step-000000004"], "the newest, not each"


def test_managers_that_share_their_threads_write_in_the_order_of_their_saves(tmp_path, monkeypatch):
    """A good state must be on disk before any checkpoint that was taken after it."""
    order, plain = [], checkpoint_manager.write_checkpoint

    def slow_for_good(folder, *args):
        if folder.name == "good":
            time.sleep(0.2)
        order.append(folder.name)
        return plain(folder, *args)

    monkeypatch.setattr(checkpoint_manager, "write_checkpoint", slow_for_good)
    threads = CheckpointThreads()
    good, usual = (CheckpointManager(tmp_path / name, MINE, threads=threads) for name in ("good", "usual"))
    good.save(_snapshot(1))
    usual.save(_snapshot(1), wait=True)
    assert order == ["good", "usual"]
    threads.close()


def test_a_failed_upload_is_reported_and_the_checkpoint_on_disk_is_kept(tmp_path, caplog):
    def upload(local, artifact):
        raise ConnectionError("the server is away")

    store = CheckpointManager(tmp_path, MINE, upload=upload)
    store.save(_snapshot(1), wait=True)
    store.close()
    assert "the server is away" in caplog.text
    _same(store.latest(), _snapshot(1))


def test_figures_that_are_not_finite_stop_the_training():
    require_finite(1.5, what="loss", epoch=0, batch=0)
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"epoch 3, batch 7.*loss.*lower lr"):
            require_finite(value, what="loss", epoch=2, batch=7)
