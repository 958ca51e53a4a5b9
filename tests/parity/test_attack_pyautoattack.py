"""Training APGD against the APGD of AutoAttack (pyautoattack), from the image itself, in float32, with hard labels.

Linf and L2 are computed in the same order and agree bit for bit. L1 projects by a search in float32 there and by an
exact solution in float64 here; it agrees to that search's accuracy.
"""

import pytest
import torch
from torch import nn

from components.attack import apgd as module
from components.attack.apgd import Halving, apgd

autopgd = pytest.importorskip("pyautoattack.autopgd_base")

RADII = {"Linf": 0.08, "L2": 0.9, "L1": 9.0}
STEPS = [2, 10, 100]
EVALUATION_TOP_K = 0.2
"""Share of entries that AutoAttack's first L1 step moves; the released training attack begins with 0.05."""


@pytest.fixture
def setting():
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 6, 3, stride=2), nn.GELU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(54, 4)).eval()
    with torch.no_grad():
        model[-1].weight.mul_(6)
    generator = torch.Generator().manual_seed(4)
    return model, torch.rand(6, 3, 8, 8, generator=generator), torch.randint(0, 4, (6,), generator=generator)


def _theirs(model, x, norm, steps):
    attack = autopgd.APGDAttack(model, n_iter=steps, norm=norm, eps=RADII[norm], loss="ce", device="cpu")
    attack.init_hyperparam(x)
    return attack


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linf_and_l2_agree_bit_for_bit(setting, norm, steps):
    model, x, y = setting
    best, _, loss, _ = _theirs(model, x, norm, steps).attack_single_run(x, y, x_init=x.clone())
    found = apgd(model, x, y, norm=norm, eps=RADII[norm], steps=steps)
    assert torch.equal(found.x_adv, best)
    assert torch.equal(found.loss, loss)
    assert not torch.equal(found.x_adv, x)


@pytest.mark.parametrize("steps", STEPS)
def test_l1_agrees_with_an_equal_first_share(setting, monkeypatch, steps):
    model, x, y = setting
    attack = _theirs(model, x, "L1", steps)
    with monkeypatch.context() as patch:
        # Without `x_init` it starts at x plus normal noise, which is nothing here; with one it has another first share.
        patch.setattr(torch, "randn", lambda *shape, **options: torch.zeros(*shape, **options))
        best, _, loss, _ = attack.attack_single_run(x, y)
    monkeypatch.setattr(module, "TRAINING_TOP_K", EVALUATION_TOP_K)
    found = apgd(model, x, y, norm="L1", eps=RADII["L1"], steps=steps)
    # A hundred steps add the search's error up: one entry of 1,152 is 1.01e-6 away.
    torch.testing.assert_close(found.x_adv, best, atol=1e-6 if steps <= 10 else 2e-6, rtol=0)
    torch.testing.assert_close(found.loss, loss, atol=1e-6, rtol=0)
    monkeypatch.undo()
    other = apgd(model, x, y, norm="L1", eps=RADII["L1"], steps=steps).x_adv
    assert float((other - best).abs().max()) > 0.1, "the first share matters, so the comparison sees it"


def _checks(steps):
    """After which steps of a whole attack the step size may be halved."""
    x = torch.zeros(1, 3, 2, 2)
    halving, loss = Halving(x, 0.1, steps), torch.zeros(1)
    return [done for done in range(1, steps + 1) if halving.check(done, loss, loss, x) is not None]


def test_the_step_is_halved_at_autoattacks_times():
    assert _checks(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_with_few_steps_it_may_be_halved_after_each():
    """The released training attack: intervals of int(0.22 n), at least 1, that shorten by at least 1."""
    assert _checks(3) == [1, 2, 3]
    assert _checks(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
