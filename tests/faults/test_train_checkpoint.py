"""Checkpoints that are torn, damaged or not ours."""

import os

import pytest
import torch

from components.errors import UserError
from components.train import checkpoint as room
from components.train.checkpoint import CheckpointStore, Snapshot, read_checkpoint, write_checkpoint
from components.train.health import require_finite

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
    assert dict(one.facts) == dict(other.facts)
    for group, tensors in other.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(one.tensors[group][name], tensor)


@pytest.fixture
def store(tmp_path):
    opened = CheckpointStore(tmp_path / "checkpoints", MINE)
    yield opened
    opened.close()


def test_comes_back_as_it_was_and_the_previous_one_is_kept(store):
    for step in (1, 2, 10):
        store.save(_snapshot(step), wait=True)
    _same(store.latest(), _snapshot(10))
    assert len(list(store.folder.iterdir())) == 2


def test_written_beside_the_training(store):
    store.save(_snapshot(1))
    store.save(_snapshot(2))
    store.settle()
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
def test_a_damaged_one_is_refused_aloud_and_the_previous_one_used(store, capsys, how):
    store.save(_snapshot(1), wait=True)
    store.save(_snapshot(2), wait=True)
    newest = sorted(store.folder.iterdir())[-1]
    _damage(newest, how)
    with pytest.raises(ValueError, match=r"it |model|state"):
        read_checkpoint(newest, MINE)
    _same(store.latest(), _snapshot(1))
    said = capsys.readouterr().err
    assert "is not used" in said
    assert newest.name in said


def test_a_manifest_cannot_point_outside(store, tmp_path):
    place = write_checkpoint(tmp_path / "other", _snapshot(1), MINE)
    manifest = place / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"state.json"', '"../state.json"'))
    with pytest.raises(ValueError, match="outside"):
        read_checkpoint(place, MINE)


def test_nothing_whole_means_a_fresh_start(store):
    assert store.latest() is None
    store.save(_snapshot(1), wait=True)
    _damage(next(store.folder.iterdir()), "truncated")
    assert store.latest() is None


@pytest.mark.parametrize("dies_in", ["save_file", "write_json", "replace"])
def test_dying_while_writing_leaves_the_previous_one(store, monkeypatch, dies_in):
    store.save(_snapshot(1), wait=True)

    def dies(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if dies_in == "replace" else (room, dies_in)), dies)
        with pytest.raises(OSError, match="No space"):
            store.save(_snapshot(2), wait=True)
    _same(store.latest(), _snapshot(1))
    assert not list(store.folder.glob(".part-*")), "what the dead one left is cleared"
    store.save(_snapshot(3), wait=True)
    _same(store.latest(), _snapshot(3))


def test_a_failed_write_in_the_thread_is_not_lost(store, monkeypatch):
    monkeypatch.setattr(room, "save_file", lambda *a: (_ for _ in ()).throw(OSError("gone")))
    store.save(_snapshot(1))
    with pytest.raises(OSError, match="gone"):
        store.settle()


def test_artifacts_serve_where_the_disk_is_new(tmp_path, capsys):
    import shutil

    remote = tmp_path / "remote"

    def upload(local, artifact):
        shutil.copytree(local, remote / artifact, dirs_exist_ok=True)

    def fetch(artifact, to):
        return shutil.copytree(remote / artifact, to) if (remote / artifact).exists() else None

    first = CheckpointStore(tmp_path / "one", MINE, upload=upload, fetch=fetch)
    for step in (1, 2, 3):
        first.save(_snapshot(step), wait=True)
    first.close()
    second = CheckpointStore(tmp_path / "two", MINE, upload=upload, fetch=fetch)
    _same(second.latest(), _snapshot(3))
    newest = max(remote.glob("checkpoints/*"), key=lambda p: read_checkpoint(p, MINE).step)
    _damage(newest, "flipped bit")
    _same(second.latest(), _snapshot(2))
    assert "is not used" in capsys.readouterr().err
    second.close()


def test_an_upload_that_fails_is_said_and_survived(tmp_path, capsys):
    def upload(local, artifact):
        raise ConnectionError("the server is away")

    store = CheckpointStore(tmp_path, MINE, upload=upload)
    store.save(_snapshot(1), wait=True)
    assert "the server is away" in capsys.readouterr().err
    _same(store.latest(), _snapshot(1))
    store.close()


def test_figures_that_are_no_numbers_stop_the_training():
    require_finite(1.5, what="loss", epoch=0, batch=0)
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"epoch 3, batch 7.*loss.*lower lr"):
            require_finite(value, what="loss", epoch=2, batch=7)
