"""The losses of twenty steps, clean and adversarial, as they were when the training was last meant to change.

Written anew with ROBUSTRAIN_WRITE_GOLDEN=1. A change of these figures changes what recipes make: raise the stage's
`version` in the stage table with them, so that finished runs of the old code are not reused.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from components.train import loop, stage
from components.train.world import World
from tests.resume.conftest import data  # noqa: F401  (a fixture)
from tests.resume.small_training import job_of

GOLDEN = Path(__file__).with_name("train_losses.json")
STEPS = 20


@pytest.mark.parametrize("attack", ["clean", "adversarial"])
def test_losses_of_twenty_steps(data, tmp_path, monkeypatch, attack):  # noqa: F811
    torch.set_num_threads(1)
    plain, losses = loop.train_step, []

    def watched(*args, **kwargs):
        outcome = plain(*args, **kwargs)
        losses.append(float(outcome.sums[0]) / kwargs["global_batch"])
        return outcome

    monkeypatch.setattr(loop, "train_step", watched)
    stage.work(job_of(data, tmp_path, attack, epochs=4), World())
    assert len(losses) == STEPS
    if os.environ.get("ROBUSTRAIN_WRITE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**known, attack: [round(loss, 6) for loss in losses]}, indent=1) + "\n")
    # Other processors round otherwise, and twenty steps let that grow.
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())[attack], rel=5e-4)
