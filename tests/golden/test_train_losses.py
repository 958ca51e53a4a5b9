"""Twenty steps, clean and adversarial, as they were when the training was last meant to change: losses and weights.

The network learns in them: its blocks count from the start and the rate is high, so that a change of the optimizer's
betas, decay or groups, of the average, the attack or the schedule shows. Written anew with ROBUSTRAIN_WRITE_GOLDEN=1. A
change of these figures changes what recipes make: raise the stage's `version` in the stage table with them, so that
finished runs of the old code are not reused.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from components.train import loop, stage
from components.train.distributed import Distributed
from tests.resume.conftest import data  # noqa: F401  (a fixture)
from tests.resume.small_training import config_of, job_from

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("train_losses.json")
STEPS, TOLERANCE = 20, 1e-4


def _norms(module):
    """The length of each of a network's weights, all in all and of those with one dimension."""
    tensors = [tensor.detach().double() for tensor in module.parameters()]
    parts = {"all": tensors, "vectors": [tensor for tensor in tensors if tensor.ndim == 1]}
    return {name: float(torch.stack([tensor.norm() for tensor in part]).norm()) for name, part in parts.items()}


def _trained(images, folder, monkeypatch, which, change):
    """Losses of all steps, and the final weights' and average's norms."""
    torch.set_num_threads(1)
    plain, finish, found = loop.train_step, stage._finish, {"losses": []}

    def watched(*args, **kwargs):
        outcome = plain(*args, **kwargs)
        found["losses"].append(float(outcome.sums[0]) / kwargs["global_batch"])
        return outcome

    def finished(job, training, card):
        found.update(weights=_norms(training.state.model), average=_norms(training.state.ema.model))
        return finish(job, training, card)

    monkeypatch.setattr(loop, "train_step", watched)
    monkeypatch.setattr(stage, "_finish", finished)
    kind, config = config_of(which, **{"epochs": 4, "lr": 6e-3, "weight_decay": 0.5, **change})
    stage.work(job_from(images, folder, kind, config), Distributed())
    assert len(found["losses"]) == STEPS
    return found


def _same(found, golden):
    # Other processors round otherwise, and twenty steps let that grow.
    close = found["losses"] == pytest.approx(golden["losses"], rel=TOLERANCE)
    return close and all(found[part] == pytest.approx(golden[part], rel=TOLERANCE) for part in ("weights", "average"))


@pytest.mark.parametrize("attack", ["clean", "adversarial"])
def test_losses_of_twenty_steps(data, tmp_path, monkeypatch, attack):  # noqa: F811
    found = _trained(data, tmp_path, monkeypatch, attack, {})
    if os.environ.get("ROBUSTRAIN_WRITE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**known, attack: found}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())[attack]
    assert found["losses"] == pytest.approx(golden["losses"], rel=TOLERANCE)
    assert _same(found, golden)


CHANGES = {
    "betas": {"betas": (0.9, 0.999)},
    "weight decay": {"weight_decay": 0.4},
    "groups": {"no_weight_decay": "released_code"},
    "average": {"ema_decay": 0.91},
    "stochastic depth": {"drop_path": 0.0},
    "smoothing": {"label_smoothing": 0.11},
    "schedule": {"min_lr": 1e-4},
    "one step less": {"attack": {"norm": "Linf", "eps": 0.1, "steps": 1}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_recipe_would_be_noticed(data, tmp_path, monkeypatch, change):  # noqa: F811
    found = _trained(data, tmp_path, monkeypatch, "adversarial", CHANGES[change])
    assert not _same(found, json.loads(GOLDEN.read_text())["adversarial"])
