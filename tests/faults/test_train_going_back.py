"""Going back to a good state: exact over interruptions, limited, and refused where nothing is left to go back to."""

import shutil
import signal

import pytest
import torch

from components.errors import UserError
from components.store.job import Terminated
from components.train.checkpoint import CheckpointStore, Snapshot
from components.train.loop import Training
from tests.small_training import encoded, job, train

BACK = {"on_non_finite": "back"}
PER_EPOCH = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def burst(monkeypatch):
    """A learning rate that bursts in the middle of the second epoch, until it has been made smaller once."""
    plain = Training.lr

    def lr(self, at):
        bursts = 1.3 < at < 1.7 and self.state.health.lr_scale == 1.0
        return 1e30 if bursts else plain(self, at)

    monkeypatch.setattr(Training, "lr", lr)


def _weights(made):
    from safetensors.torch import load_file

    return load_file(made.run.artifacts / "model" / "weights.safetensors")


def _interrupt(monkeypatch, *, step, backs):
    """Asks the training to end after this step of the time line before or after it has gone back."""
    plain = Training._step

    def watched(self, batch):
        if (self.state.position.step, self.state.health.backs) == (step - 1, backs):
            self.stop.received = signal.SIGTERM
        plain(self, batch)

    monkeypatch.setattr(Training, "_step", watched)


@pytest.fixture
def whole(data, tmp_path, burst):
    made = job(data, tmp_path / "whole", epochs=3, health=BACK)
    return train(made), _weights(made)


def test_it_returns_to_the_last_good_probe(whole):
    result, _ = whole
    event = result["health"]["events"][0]
    assert (event["epoch"], event["signature"], event["action"], event["lr_scale"]) == (2, "non_finite", "back", 0.5)
    assert result["health"]["went_back"] == 1
    assert result["steps"] == 3 * PER_EPOCH


@pytest.mark.parametrize(
    ("step", "backs"), [(2, 0), (PER_EPOCH, 0), (PER_EPOCH + 1, 0), (PER_EPOCH + 1, 1), (PER_EPOCH + 3, 1), (12, 1)]
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another machine"])
def test_interrupted_before_or_after_it_ends_with_the_same_bits(data, whole, tmp_path, step, backs, elsewhere):
    expected, weights = whole
    made = job(data, tmp_path / "cut", epochs=3, health=BACK)
    with pytest.MonkeyPatch.context() as patch:
        _interrupt(patch, step=step, backs=backs)
        with pytest.raises(Terminated):
            train(made)
    if elsewhere:
        shutil.rmtree(made.run.workdir)
        made.run.workdir.mkdir()
    assert train(made) == expected
    for name, tensor in _weights(made).items():
        assert torch.equal(tensor, weights[name]), name


def test_it_stops_after_so_many_times(data, tmp_path, capsys):
    """A rate that never learns: back to the start twice, then an end."""
    health = {"on_chance": "back", "chance_epochs": 1, "back_times": 2}
    with pytest.raises(UserError, match=r"never left chance.* after going back 2 times"):
        train(job(data, tmp_path, lr=1e-12, lr_min=0, health=health))
    said = capsys.readouterr().err
    assert "end of epoch 0 with 0.5 of the learning rate" in said
    assert "end of epoch 0 with 0.25 of the learning rate" in said


def test_without_a_good_state_it_stops(data, tmp_path, burst, monkeypatch):
    monkeypatch.setattr(CheckpointStore, "latest", lambda self: None)
    with pytest.raises(UserError, match="no good state is left"):
        train(job(data, tmp_path, health=BACK))


def test_a_checkpoint_after_going_back_is_newer_than_a_later_step_before_it(tmp_path):
    store = CheckpointStore(tmp_path, "f" * 64)

    def snapshot(step, backs):
        facts = {"step": step, "epoch": step // 5, "health": {"backs": backs}}
        return Snapshot({"model": {"w": torch.tensor([float(step)])}}, facts)

    for step, backs in ((14, 0), (15, 0), (10, 1), (11, 1)):
        store.save(snapshot(step, backs), wait=True)
        newest = store.latest()
        assert newest is not None
        assert (newest.step, newest.backs) == (step, backs)
    assert len(list(tmp_path.iterdir())) == 2
    store.close()
