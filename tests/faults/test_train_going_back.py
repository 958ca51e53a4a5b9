"""Going back to a good state: exact over interruptions, limited, and refused where nothing is left to go back to."""

import shutil
import signal

import pytest
import torch

from components.errors import Terminated, UserError
from components.train.checkpoint import Snapshot
from components.train.checkpoint_manager import CheckpointStore
from components.train.loop import Training
from tests.small_training import encoded, job, train

BACK = {"on_non_finite": "back"}
PER_EPOCH, EPOCHS, GOOD = 10, 5, 3
LEARNING = {
    "epochs": EPOCHS,
    "batch_size": 32,
    "lr": 6e-3,
    "ema_decay": 0.5,
    "model": {"name": "convnext_micro", "stem": "conv", "kwargs": {"depths": [1, 1, 1, 1], "ls_init_value": 0.1}},
    "probe": {"every": 1, "images": 80, "fraction": 0.2},
    "health": BACK,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("digits"), max_train_images=400)


def bursting(patch):
    """A learning rate that bursts after the third epoch's probe, until it has been made smaller once."""
    plain = Training.lr

    def lr(self, at):
        bursts = GOOD + 0.3 < at < GOOD + 0.7 and self.state.health.lr_scale == 1.0
        return 1e30 if bursts else plain(self, at)

    patch.setattr(Training, "lr", lr)


@pytest.fixture
def burst(monkeypatch):
    bursting(monkeypatch)


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


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The training that nobody disturbs but its own burst, and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        bursting(patch)
        made = job(data, tmp_path_factory.mktemp("whole"), **LEARNING)
        return train(made), _weights(made)


def test_it_returns_to_the_last_good_probe(data, tmp_path, burst, capsys):
    result = train(job(data, tmp_path, **LEARNING))
    event = result["health"]["events"][0]
    said = (event["epoch"], event["signature"], event["action"], event["lr_scale"])
    assert said == (GOOD + 1, "non_finite", "back", 0.5)
    assert f"going back to the end of epoch {GOOD}" in capsys.readouterr().err
    assert result["health"]["went_back"] == 1
    assert result["steps"] == EPOCHS * PER_EPOCH


@pytest.mark.parametrize(
    ("step", "backs"),
    [
        (2, 0),
        (GOOD * PER_EPOCH, 0),
        (GOOD * PER_EPOCH + 1, 0),
        (GOOD * PER_EPOCH + 1, 1),
        (GOOD * PER_EPOCH + 3, 1),
        (EPOCHS * PER_EPOCH - 2, 1),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another machine"])
def test_interrupted_before_or_after_it_ends_with_the_same_bits(data, whole, tmp_path, burst, step, backs, elsewhere):
    expected, weights = whole
    made = job(data, tmp_path / "cut", **LEARNING)
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
        train(job(data, tmp_path, **LEARNING))


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
    assert len(list(tmp_path.glob("step-*"))) == 2
    store.close()
