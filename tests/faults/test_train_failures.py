"""Each failure signature, provoked by a real training on a few hundred digits."""

import json
from types import SimpleNamespace

import pytest

from components.errors import UserError
from tests.small_training import encoded, job, train

PROBE = {"every_epochs": 1, "max_images": 100, "fraction": 0.2, "steps": 5, "eps": 0.1}
COMMON = {
    "model": {"name": "convnext_micro", "stem": "conv"},
    "batch_size": 32,
    "lr": 4e-3,
    "warmup_epochs": 1,
    "ema_decay": 0.8,
    "validation": PROBE,
}
ONE_STEP = {"norm": "Linf", "eps": 0.1, "steps": 1, "return_iterate": "last", "eps_warmup_epochs": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("digits"), max_train_images=600)


@pytest.fixture(scope="module")
def robust(data, tmp_path_factory):
    """A short adversarial training, looked at in three norms: its result, and its outputs as another stage's input."""
    change = {"validation": {**PROBE, "every_epochs": 5, "extra_norms": {"L1": 100, "L2": 0.1}}}
    made = job(data, tmp_path_factory.mktemp("robust"), **{**COMMON, **change}, epochs=5, attack=ONE_STEP)
    result = train(made)
    return SimpleNamespace(result=result, init=SimpleNamespace(path=lambda name: made.run.artifacts / name))


def _on(robust, data, folder, **change):
    """A training that starts from the robust one."""
    return job(data, folder, **{**COMMON, "init": "robust", "model": None, **change}, inputs={"init": robust.init})


def _signatures(result):
    return [event["signature"] for event in result["monitor"]["events"]]


def _history(made):
    return json.loads((made.run.artifacts / "history.json").read_text())


@pytest.mark.slow
def test_one_step_without_a_random_start_overfits_catastrophically(data, tmp_path, capsys):
    """Wong et al. 2020: the network learns to resist the one step and nothing else."""
    attack = {"name": "fgsm", "steps": 1, "random_start": False, "fgsm_alpha": 1.0, "eps": 0.3, "eps_warmup_epochs": 8}
    made = job(
        data, tmp_path, **{**COMMON, "validation": {**PROBE, "every_epochs": 3, "steps": 10}}, epochs=12, attack=attack
    )
    result = train(made)
    assert "catastrophic_overfitting" in _signatures(result)
    assert "catastrophic overfitting: under the training attack" in capsys.readouterr().err
    first, *_, last = [entry for entry in _history(made) if "raw_robust_accuracy" in entry]
    assert first["raw_robust_accuracy"] > 0.4
    assert last["raw_attacked_accuracy"] > 0.5
    assert last["raw_robust_accuracy"] < 0.1


def test_robust_in_one_norm_only(robust):
    assert _signatures(robust.result) == ["poor_generalisation"]
    sentence = robust.result["monitor"]["events"][0]["sentence"]
    assert "in L1" in sentence
    assert "in L2" not in sentence


def test_overfitting_forgets_robustness_for_clean_accuracy(robust, data, tmp_path):
    """A radius far below the validation's: the network goes on learning, but no longer what the validation measures."""
    made = _on(robust, data, tmp_path, epochs=8, lr=6e-3, attack={"eps": 0.001, "steps": 1})
    assert "overfitting" in _signatures(train(made))


def _falls_to_chance(robust, data, folder, **monitor):
    """A radius that grows until no class can be distinguished."""
    attack = {"norm": "Linf", "eps": 0.9, "steps": 1, "return_iterate": "last", "eps_warmup_epochs": 3}
    return _on(robust, data, folder, epochs=4, lr=2e-2, attack=attack, monitor=monitor)


def test_collapse_is_reported(robust, data, tmp_path, capsys):
    assert "collapse" in _signatures(train(_falls_to_chance(robust, data, tmp_path)))
    assert "warning: training collapsed" in capsys.readouterr().err


def test_collapse_stops(robust, data, tmp_path):
    with pytest.raises(UserError, match=r"epoch \d: training collapsed: .* lower lr"):
        train(_falls_to_chance(robust, data, tmp_path, on_collapse="stop"))


def test_collapse_rolls_back_to_smaller_steps(robust, data, tmp_path, capsys):
    made = _falls_to_chance(robust, data, tmp_path, on_collapse="rollback", rollback_lr_factor=1e-4)
    result = train(made)
    assert result["monitor"]["num_rollbacks"] == 1
    assert result["monitor"]["lr_scale"] == 1e-4
    assert "rolling back to the end of epoch" in capsys.readouterr().err
    assert result["clean_accuracy"] > 0.5
    assert _history(made)[-1]["lr"] < 1e-8


def test_a_radius_too_large_from_the_start_never_leaves_chance(data, tmp_path):
    attack = {"norm": "Linf", "eps": 0.6, "steps": 2}
    with pytest.raises(UserError, match=r"epoch 3: training never left chance: after 3 epochs .* of 10 classes"):
        train(job(data, tmp_path, **COMMON, epochs=4, attack=attack, monitor={"on_chance": "stop", "chance_epochs": 3}))


HUGE = {"lr": 1e6, "min_lr": 1.0, "warmup_epochs": 0, "epochs": 2}


def test_a_huge_rate_ends_in_a_loss_that_is_not_finite(data, tmp_path):
    with pytest.raises(UserError, match=r"epoch 1.*(loss|norm) is not a finite number.*lower lr"):
        train(job(data, tmp_path, **{**COMMON, **HUGE}))


def test_and_rolls_back_to_a_smaller_one(data, tmp_path):
    monitor = {"on_non_finite": "rollback", "rollback_lr_factor": 1e-9}
    result = train(job(data, tmp_path, **{**COMMON, **HUGE}, monitor=monitor))
    assert _signatures(result) == ["non_finite"]
    assert result["clean_accuracy"] > 0.5
