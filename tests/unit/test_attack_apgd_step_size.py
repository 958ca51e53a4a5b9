"""APGD's step sizes: their limits."""

import torch

from components.attack.apgd import Sparsity


def test_the_l1_step_never_falls_below_a_tenth_of_eps():
    """Croce and Hein 2021, section 3: it shrinks by 1.5 at each check, down to eps / 10."""
    schedule = Sparsity(torch.zeros(2, 3, 4, 4), eps=6.0, steps=100)
    moved, loss = torch.ones(2, 3, 4, 4), torch.zeros(2)
    steps = []
    for done in range(1, 101):
        if schedule.check(done, loss, loss, moved) is not None:
            steps.append(schedule.step.flatten().tolist())
    assert steps[0] == [6.0 / 1.5] * 2, "as many entries as before: smaller steps"
    torch.testing.assert_close(torch.tensor(steps[-1]), torch.full((2,), 0.6))
    torch.testing.assert_close(torch.tensor(steps).min(), torch.tensor(0.6))
