"""The monitor: findings that return after a rollback, and the learning rate after one."""

import copy
from types import SimpleNamespace

import pytest

from components.train.config import AdversarialConfig, MonitorConfig
from components.train.distributed import Distributed
from components.train.loop import Training
from components.train.monitor import Rollback, TrainingMonitor
from components.train.state import ComputeSetup, MonitorState, Position

GOOD = {"clean_accuracy": 0.8, "robust_accuracy": 0.5, "robust_accuracy_L2": 0.3, "raw_clean_accuracy": 0.8}
POOR = {**GOOD, "robust_accuracy_L2": 0.01}
COLLAPSED = {**GOOD, "clean_accuracy": 0.2, "robust_accuracy": 0.1, "robust_accuracy_L2": 0.0}


class State:
    """The parts of a training's state that a monitor uses."""

    def __init__(self):
        self.position, self.monitor, self.history = Position(), MonitorState(), []
        self.compute_setup, self.precision = ComputeSetup(), SimpleNamespace(scaler=None)

    def snapshot(self):
        return copy.deepcopy(vars(self))

    def restore(self, snapshot):
        vars(self).update(copy.deepcopy(snapshot))

    def validated(self, figures):
        self.position.epoch += 1
        self.history.append({"epoch": self.position.epoch, **figures})


class GoodStates:
    """Keeps the newest snapshot in memory."""

    def save(self, snapshot):
        self.kept = snapshot

    def latest(self):
        return self.kept

    def wait_until_written(self):
        pass


@pytest.fixture
def monitored():
    state, warnings = State(), []
    config = MonitorConfig(on_collapse="rollback")
    monitor = TrainingMonitor(config, state, Distributed(), 10, 1000, GoodStates(), warn=warnings.append)
    monitor.start()
    return monitor, state, warnings


def test_a_finding_that_stays_is_reported_once(monitored):
    monitor, state, warnings = monitored
    for figures in (GOOD, POOR, POOR):
        state.validated(figures)
        monitor.after_validation()
    assert len(warnings) == 1
    assert [event["signature"] for event in state.monitor.events] == ["poor_generalisation"]


def test_a_finding_that_returns_after_a_rollback_is_reported_again(monitored):
    monitor, state, warnings = monitored
    state.validated(GOOD)
    monitor.after_validation()
    for _ in range(2):
        state.validated(POOR)
        state.history[-1].update(COLLAPSED, robust_accuracy=0.24, robust_accuracy_L2=0.001)
        with pytest.raises(Rollback) as caught:
            monitor.after_validation()
        monitor.roll_back(caught.value.finding)
        assert state.position.epoch == 1
        assert state.monitor.active_signatures == []
    signatures = [event["signature"] for event in state.monitor.events]
    assert signatures == ["poor_generalisation", "collapse"] * 2
    assert [event["lr_scale"] for event in state.monitor.events] == [1.0, 0.5, 0.5, 0.25]
    assert len(warnings) == 4


def test_the_learning_rate_of_a_step_has_the_factor_of_the_rollbacks():
    config = AdversarialConfig(data="digits", init="pretrain", epochs=4, warmup_epochs=1)
    state = State()
    training = Training(config, 0, Distributed(), None, state, None)
    plain = [training.lr(at) for at in (0.5, 1.0, 3.5)]
    assert plain[1] == config.lr
    state.monitor.lr_scale = 0.25
    assert [training.lr(at) for at in (0.5, 1.0, 3.5)] == pytest.approx([0.25 * rate for rate in plain])
