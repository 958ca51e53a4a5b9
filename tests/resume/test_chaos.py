"""A few of the trials that `make chaos` makes many of."""

import random

import pytest

from tests.resume import chaos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    chaos.preload()
    return chaos.Chaos(tmp_path_factory.mktemp("chaos") / "home")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(stage, seed):
    trial = stage.trial(seed, random.Random(seed))
    assert trial.kills, "nothing was killed, so nothing was shown"
    assert trial.same, trial


def test_other_weights_would_be_noticed(stage, monkeypatch):
    monkeypatch.setattr(stage, "expected", ("0" * 64, stage.expected[1]))
    assert not stage.trial(9, random.Random(9)).same
