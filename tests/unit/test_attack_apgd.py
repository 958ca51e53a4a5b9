"""APGD as trained with: how much work it does, what it leaves behind, and where its points lie."""

import pytest
import torch
from torch import nn

from components.attack.apgd import Sparsity, apgd, sparse_sign
from components.attack.fgsm import fgsm
from components.attack.losses import cross_entropy

RADII = {"Linf": 0.1, "L2": 1.0, "L1": 8.0}


class Counting(nn.Module):
    """A small network that counts forwards and the backwards that reach its input."""

    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GELU(),
            nn.BatchNorm2d(8),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(512, classes),
        )
        self.forwards = self.graphs = self.backwards = 0
        self.weights_had_gradients = self.was_training = False

    def forward(self, x):
        self.forwards += 1
        self.weights_had_gradients |= any(p.requires_grad for p in self.parameters())
        self.was_training |= any(m.training for m in self.modules())
        if torch.is_grad_enabled() and x.requires_grad:
            self.graphs += 1
            x = x.clone()
            x.register_hook(self._count)
        return self.body(x)

    def _count(self, gradient):
        self.backwards += 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Counting().train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 8, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator)


@pytest.mark.parametrize(
    ("return_iterate", "steps", "forwards", "backwards"),
    [("best", 2, 3, 2), ("last", 2, 2, 2), ("best", 1, 2, 1), ("best", 3, 4, 3)],
)
def test_pass_counts(model, batch, return_iterate, steps, forwards, backwards):
    apgd(model, *batch, norm="Linf", eps=0.1, steps=steps, return_iterate=return_iterate)
    assert (model.forwards, model.backwards) == (forwards, backwards)
    assert model.graphs == backwards, "the selecting forward must build no graph"


def test_fgsm_costs_one_forward_and_one_gradient(model, batch):
    fgsm(model, *batch, eps=0.1, noise=torch.zeros_like(batch[0]))
    assert (model.forwards, model.backwards) == (1, 1)


def test_model_is_frozen_and_evaluating_inside_and_as_before_outside(model, batch):
    model.body[2].eval()
    model.body[0].weight.requires_grad_(False)
    apgd(model, *batch, norm="Linf", eps=0.1, steps=2)
    assert not model.weights_had_gradients
    assert not model.was_training
    assert [m.training for m in model.body] == [True, True, False, True, True, True]
    assert [p.requires_grad for p in model.body.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_model_is_put_back_when_the_attack_fails(model, batch):
    with pytest.raises(IndexError):
        apgd(model, batch[0], torch.full((6,), 99), norm="Linf", eps=0.1, steps=2)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("soft", [False, True])
def test_stays_inside_and_never_loses_loss(model, batch, norm, steps, soft):
    x, y = batch
    y = torch.softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), 1) if soft else y
    found = apgd(model, x, y, norm=norm, eps=RADII[norm], steps=steps)
    delta = (found.x_adv - x).flatten(1)
    size = {"Linf": delta.abs().amax(1), "L2": delta.norm(dim=1), "L1": delta.abs().sum(1)}[norm]
    assert float(size.max()) <= RADII[norm] * (1 + 1e-5)
    assert float(size.min()) > 0
    assert float(found.x_adv.min()) >= 0
    assert float(found.x_adv.max()) <= 1
    assert found.loss is not None
    assert bool((found.loss >= found.start_loss).all())
    model.eval()
    torch.testing.assert_close(cross_entropy(model(found.x_adv), y), found.loss)


def test_images_outside_the_range_are_clamped_first(model, batch):
    x = batch[0] * 4 - 2
    found = apgd(model, x, batch[1], norm="Linf", eps=0.1, steps=2)
    assert float((found.x_adv - x.clamp(0, 1)).abs().max()) <= 0.1 + 1e-6
    assert float(found.x_adv.min()) >= 0
    assert float(found.x_adv.max()) <= 1


def _sizes(norm, delta):
    flat = delta.flatten(1)
    return {"Linf": flat.abs().amax(1), "L2": flat.norm(dim=1), "L1": flat.abs().sum(1)}[norm]


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("return_iterate", ["best", "last"])
def test_a_start_outside_the_ball_is_brought_in(batch, norm, return_iterate):
    """Also where the start is the best of all points: the loss falls away from it in every direction."""

    class Peak(nn.Module):
        def forward(self, points):
            distance = (points - far).square().sum((1, 2, 3))
            return torch.stack([distance, torch.zeros_like(distance)], dim=1)

    x = batch[0]
    far = (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
    eps = RADII[norm] / 100
    found = apgd(
        Peak(),
        x,
        torch.zeros(6, dtype=torch.long),
        norm=norm,
        eps=eps,
        steps=2,
        return_iterate=return_iterate,
        start=far,
    )
    assert float(_sizes(norm, far - x).min()) > 10 * eps
    assert float(_sizes(norm, found.x_adv - x).max()) <= eps * (1 + 1e-5)
    assert float(found.x_adv.min()) >= 0
    assert float(found.x_adv.max()) <= 1


def test_a_start_inside_the_ball_is_where_the_attack_begins(model, batch):
    x, y = batch
    start = (x + 0.05).clamp(0, 1)
    found = apgd(model, x, y, norm="Linf", eps=0.1, steps=1, start=start)
    model.eval()
    torch.testing.assert_close(found.start_loss, cross_entropy(model(start), y))


def test_the_released_code_leaves_erased_pixels_alone(model, batch):
    """The ball is around the pixel as it is: a pixel farther than eps outside [0, 1] cannot move."""
    x, y = batch
    x = x.clone()
    x[:, :, :4] = torch.randn(6, 3, 4, 8, generator=torch.Generator().manual_seed(6)) * 2
    beyond = (x < -0.1) | (x > 1.1)
    near = (x >= 0) & (x <= 1)
    assert int(beyond.sum()) > 50
    given, clamped = (
        apgd(model, x, y, norm="Linf", eps=0.1, steps=3, centre=centre, return_iterate="last").x_adv
        for centre in ("given", "clamped")
    )
    assert torch.equal(given[beyond], x.clamp(0, 1)[beyond])
    assert float((clamped - x.clamp(0, 1))[beyond].abs().max()) == pytest.approx(0.1, abs=1e-6)
    for found in (given, clamped):
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert float((found - x)[near].abs().max()) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("norm", RADII)
def test_both_centres_are_one_for_images_in_range(model, batch, norm):
    given, clamped = (
        apgd(model, *batch, norm=norm, eps=RADII[norm], steps=3, centre=centre).x_adv for centre in ("given", "clamped")
    )
    assert torch.equal(given, clamped)


def _inner(batch):
    """Images so far from 0 and 1 that nothing is clipped."""
    return batch[0] * 0.5 + 0.25, batch[1]


def test_first_step_moves_every_entry_by_eps(model, batch):
    x, y = _inner(batch)
    delta = apgd(model, x, y, norm="Linf", eps=0.1, steps=1, return_iterate="last").x_adv - x
    moved = delta.abs()
    assert bool(((moved < 1e-6) | ((moved - 0.1).abs() < 1e-6)).all())
    assert float((moved > 0).float().mean()) > 0.99


def test_second_step_puts_flipped_entries_at_a_quarter_of_eps(model, batch):
    x, y = _inner(batch)
    first = apgd(model, x, y, norm="Linf", eps=0.1, steps=1, return_iterate="last").x_adv - x
    second = apgd(model, x, y, norm="Linf", eps=0.1, steps=2, return_iterate="last").x_adv - x
    flipped = (second * first.sign()) < 0
    assert int(flipped.sum()) > 0
    torch.testing.assert_close(second[flipped], -0.25 * first[flipped], atol=1e-6, rtol=0)
    torch.testing.assert_close(second[~flipped], first[~flipped], atol=1e-6, rtol=0)


def test_best_form_returns_the_image_itself_where_nothing_is_worse(batch):
    class Flat(nn.Module):
        def forward(self, x):
            return (x - x.detach()).mean((2, 3)) + torch.zeros(3)

    found = apgd(Flat(), *batch[:1], torch.zeros(6, dtype=torch.long), norm="Linf", eps=0.1, steps=2)
    assert torch.equal(found.x_adv, batch[0])


def test_half_precision_logits_give_full_precision_losses():
    logits = torch.randn(4, 5).to(torch.bfloat16)
    assert cross_entropy(logits, torch.tensor([0, 1, 2, 3])).dtype == torch.float32


def test_works_under_autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        found = apgd(model, *batch, norm="Linf", eps=0.1, steps=2)
    assert found.x_adv.dtype == torch.float32
    assert float((found.x_adv - batch[0]).abs().max()) <= 0.1 + 1e-6


def test_sparse_sign_keeps_the_largest_entries():
    gradient = torch.arange(1.0, 13).view(1, 3, 2, 2) * torch.tensor([1, -1]).repeat(6).view(1, 3, 2, 2)
    step = sparse_sign(gradient, torch.tensor([0.25]))
    assert step.flatten().nonzero().flatten().tolist() == [9, 10, 11]
    torch.testing.assert_close(step.flatten()[9:], torch.tensor([-1, 1, -1]) / 3)


@pytest.mark.parametrize(
    "change", [{"norm": "L3"}, {"steps": 0}, {"eps": 0.0}, {"return_iterate": "middle"}, {"centre": "left"}]
)
def test_refuses_nonsense(model, batch, change):
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        apgd(model, *batch, **{"norm": "Linf", "eps": 0.1, "steps": 2, **change})


def test_no_host_synchronisation(model, batch, monkeypatch):
    """`.item()`, `.tolist()`, `bool(tensor)` and boolean indexing all wait for a GPU."""

    def waits(*args, **kwargs):
        raise AssertionError("the attack waits for the device")

    plain = torch.Tensor.__getitem__
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero", "cpu", "numpy", "__setitem__"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    monkeypatch.setattr(
        torch.Tensor, "__getitem__", lambda t, i: waits() if isinstance(i, torch.Tensor) else plain(t, i)
    )
    found = {norm: apgd(model, *batch, norm=norm, eps=eps, steps=10) for norm, eps in RADII.items()}
    monkeypatch.undo()
    assert all(float(attack.loss.sum()) > float(attack.start_loss.sum()) for attack in found.values())


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
