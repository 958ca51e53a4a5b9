"""Rollbacks: exact over interruptions, limited in number, and refused without a good state."""

import shutil
import signal

import pytest
import torch

from components.errors import Terminated, UserError
from components.train.checkpoint import Snapshot
from components.train.checkpoint_manager import CheckpointManager
from components.train.loop import Training
from tests.small_training import encoded, job, train

ROLL_BACK = {"on_non_finite": "rollback"}
PER_EPOCH, EPOCHS, GOOD = 10, 5, 3
LEARNING = {
    "epochs": EPOCHS,
    "batch_size": 32,
    "lr": 6e-3,
    "ema_decay": 0.5,
    "model": {"name": "convnext_micro", "stem": "conv", "kwargs": {"depths": [1, 1, 1, 1], "ls_init_value": 0.1}},
    "validation": {"every_epochs": 1, "max_images": 80, "fraction": 0.2},
    "monitor": ROLL_BACK,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("digits"), max_train_images=400)


def bursting(patch):
    """A learning rate that bursts after the third epoch's validation, until the first rollback makes it smaller."""
    plain = Training.lr

    def lr(self, at):
        bursts = GOOD + 0.3 < at < GOOD + 0.7 and self.state.monitor.lr_scale == 1.0
        return 1e30 if bursts else plain(self, at)

    patch.setattr(Training, "lr", lr)


@pytest.fixture
def burst(monkeypatch):
    bursting(monkeypatch)


def _weights(made):
    from safetensors.torch import load_file

    return load_file(made.run.artifacts / "model" / "weights.safetensors")


def _interrupt(monkeypatch, *, step, num_rollbacks):
    """Asks the training to end after this step before or after the rollback."""
    plain = Training._step

    def watched(self, batch):
        if (self.state.position.step, self.state.monitor.num_rollbacks) == (step - 1, num_rollbacks):
            self.stop.received = signal.SIGTERM
        plain(self, batch)

    monkeypatch.setattr(Training, "_step", watched)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted training, with its burst and rollback, and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        bursting(patch)
        made = job(data, tmp_path_factory.mktemp("whole"), **LEARNING)
        return train(made), _weights(made)


def test_it_returns_to_the_last_good_validation(data, tmp_path, burst, capsys):
    result = train(job(data, tmp_path, **LEARNING))
    event = result["monitor"]["events"][0]
    found = (event["epoch"], event["signature"], event["action"], event["lr_scale"])
    assert found == (GOOD + 1, "non_finite", "rollback", 0.5)
    assert f"rolling back to the end of epoch {GOOD}" in capsys.readouterr().err
    assert result["monitor"]["num_rollbacks"] == 1
    assert result["steps"] == EPOCHS * PER_EPOCH


@pytest.mark.parametrize(
    ("step", "num_rollbacks"),
    [
        (2, 0),
        (GOOD * PER_EPOCH, 0),
        (GOOD * PER_EPOCH + 1, 0),
        (GOOD * PER_EPOCH + 1, 1),
        (GOOD * PER_EPOCH + 3, 1),
        (EPOCHS * PER_EPOCH - 2, 1),
    ],
)
@pytest.mark.parametrize("new_disk", [False, True], ids=["same disk", "new disk"])
def test_interrupted_before_or_after_it_ends_with_the_same_bits(
    data, whole, tmp_path, burst, step, num_rollbacks, new_disk
):
    expected, weights = whole
    made = job(data, tmp_path / "cut", **LEARNING)
    with pytest.MonkeyPatch.context() as patch:
        _interrupt(patch, step=step, num_rollbacks=num_rollbacks)
        with pytest.raises(Terminated):
            train(made)
    if new_disk:
        shutil.rmtree(made.run.workdir)
        made.run.workdir.mkdir()
    assert train(made) == expected
    for name, tensor in _weights(made).items():
        assert torch.equal(tensor, weights[name]), name


def test_it_stops_after_max_rollbacks(data, tmp_path, capsys):
    """A rate that never learns: two rollbacks to the start, then an end."""
    monitor = {"on_chance": "rollback", "chance_epochs": 1, "max_rollbacks": 2}
    with pytest.raises(UserError, match=r"never left chance.* after 2 rollbacks"):
        train(job(data, tmp_path, lr=1e-12, min_lr=0, monitor=monitor))
    found = capsys.readouterr().err
    assert "end of epoch 0 with 0.5 of the learning rate" in found
    assert "end of epoch 0 with 0.25 of the learning rate" in found


def test_without_a_good_state_it_stops(data, tmp_path, burst, monkeypatch):
    monkeypatch.setattr(CheckpointManager, "latest", lambda self: None)
    with pytest.raises(UserError, match="there is no good state"):
        train(job(data, tmp_path, **LEARNING))


def test_a_checkpoint_after_a_rollback_is_newer_than_a_later_step_before_it(tmp_path):
    store = CheckpointManager(tmp_path, "f" * 64)

    def snapshot(step, num_rollbacks):
        metadata = {"step": step, "epoch": step // 5, "monitor": {"num_rollbacks": num_rollbacks}}
        return Snapshot({"model": {"w": torch.tensor([float(step)])}}, metadata)

    for step, num_rollbacks in ((14, 0), (15, 0), (10, 1), (11, 1)):
        store.save(snapshot(step, num_rollbacks), wait=True)
        newest = store.latest()
        assert newest is not None
        assert (newest.step, newest.num_rollbacks) == (step, num_rollbacks)
    assert len(list(tmp_path.glob("step-*"))) == 2
    store.close()
