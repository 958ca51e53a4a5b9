"""One training step against the same thing written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.attack.apgd import apgd
from components.train.seeds import derive, row_noise, seed_step
from components.train.train_step import AttackSettings, Precision, find_adversarial, train_step

CPU = Precision("cpu")


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(72, 4)).train()
    x, y = torch.rand(8, 3, 8, 8), torch.randint(0, 4, (8,))
    return model, x, y


def _optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05)


def _after(model, loss_of):
    """Weights after one AdamW step on `loss_of(model)`."""
    other = copy.deepcopy(model)
    optimizer = _optimizer(other)
    loss_of(other).backward()
    optimizer.step()
    return other.state_dict()


def _step(model, x, y, **options):
    other = copy.deepcopy(model)
    outcome = train_step(other, _optimizer(other), x, y, precision=CPU, global_batch=len(x), **options)
    return other.state_dict(), outcome


def _close(one, other):
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=0)


def test_clean_step(setting):
    model, x, y = setting
    weights, outcome = _step(model, x, y)
    _close(weights, _after(model, lambda m: F.cross_entropy(m(x), y)))
    torch.testing.assert_close(
        outcome.sums, torch.stack([F.cross_entropy(model(x), y, reduction="sum"), torch.tensor(0.0), torch.tensor(0.0)])
    )


def test_adversarial_step_updates_on_adversarial_images_only(setting):
    model, x, _ = setting
    soft = torch.softmax(torch.randn(8, 4), 1)
    found = apgd(copy.deepcopy(model), x, soft, norm="Linf", eps=0.1, steps=2)
    weights, outcome = _step(model, x, soft, attack=AttackSettings("Linf", 0.1, 2))
    _close(weights, _after(model, lambda m: F.cross_entropy(m(found.x_adv), soft)))
    loss, gained, flipped = outcome.sums.tolist()
    assert loss == pytest.approx(float(found.loss.sum()), rel=1e-5)
    assert gained == pytest.approx(float((found.loss - found.start_loss).sum()), rel=1e-4)
    assert flipped == int((model(found.x_adv).argmax(1) != model(x).argmax(1)).sum())
    assert model.training


def test_trades_step(setting):
    """Zhang et al. 2019, eq. 5: CE(f(x), y) + beta KL(f(x) || f(x'))."""
    model, x, y = setting
    noise = torch.randn_like(x)
    log_p = F.log_softmax(model(x).detach(), 1)
    kl = lambda z, _: F.kl_div(F.log_softmax(z, 1), log_p, reduction="none", log_target=True).sum(1)  # noqa: E731
    start = (x + 1e-3 * noise).clamp(0, 1)
    found = apgd(copy.deepcopy(model), x, y, norm="Linf", eps=0.1, steps=3, objective=kl, start=start)

    def loss(m):
        p, q = F.log_softmax(m(x), 1), F.log_softmax(m(found.x_adv), 1)
        return F.nll_loss(p, y) + 4.0 * F.kl_div(q, p, reduction="batchmean", log_target=True)

    weights, outcome = _step(
        model, x, y, attack=AttackSettings("Linf", 0.1, 3, loss="trades", trades_beta=4.0), noise=noise
    )
    assert float(outcome.sums[0]) / len(x) == pytest.approx(float(loss(model).detach()), rel=1e-5)
    _close(weights, _after(model, loss))


@pytest.fixture
def moody():
    """A network that is another one in training mode: batch statistics and dropout."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(72, 4),
    ]
    model = nn.Sequential(*layers).train()
    model[1].running_mean.fill_(0.3)
    return model, torch.rand(8, 3, 8, 8), torch.randint(0, 4, (8,))


def test_trades_attacks_the_prediction_in_eval_mode(moody):
    """As its released code does: no statistics move, and nothing random is in the prediction that is moved away from."""
    model, x, y = moody
    noise, before = torch.randn_like(x), copy.deepcopy(model.state_dict())
    steady = copy.deepcopy(model).eval()
    with torch.no_grad():
        log_p = F.log_softmax(steady(x), 1)
    kl = lambda z, _: F.kl_div(F.log_softmax(z, 1), log_p, reduction="none", log_target=True).sum(1)  # noqa: E731
    start = (x + 1e-3 * noise).clamp(0, 1)
    expected = apgd(steady, x, y, norm="Linf", eps=0.1, steps=3, objective=kl, start=start)
    found = find_adversarial(model, x, y, AttackSettings("Linf", 0.1, 3, loss="trades"), noise)
    torch.testing.assert_close(found.x_adv, expected.x_adv, atol=1e-6, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1e-3), ("L2", 5e-3), ("L1", 0.05)])
@pytest.mark.parametrize("return_iterate", ["best", "last"])
def test_trades_stays_in_a_ball_smaller_than_its_start_noise(setting, norm, eps, return_iterate):
    """As at the beginning of every warm-up of the radius."""
    model, x, y = setting
    noise = torch.randn_like(x)
    flat = (1e-3 * noise).flatten(1)
    size = {"Linf": lambda d: d.abs().amax(1), "L2": lambda d: d.norm(dim=1), "L1": lambda d: d.abs().sum(1)}[norm]
    assert float(size(flat).min()) > eps
    attack = AttackSettings(norm, eps, 2, return_iterate, loss="trades")
    found = find_adversarial(model, x, y, attack, noise)
    assert float(size((found.x_adv - x).flatten(1)).max()) <= eps * (1 + 1e-4) + 1e-7


def test_what_trades_gained_is_the_divergence_of_the_update(setting):
    model, x, y = setting
    noise = torch.randn_like(x)
    attack = AttackSettings("Linf", 0.1, 3, loss="trades", trades_beta=4.0)
    found = find_adversarial(model, x, y, attack, noise)
    p, q = F.log_softmax(model(x), 1), F.log_softmax(model(found.x_adv), 1)
    divergence = float(F.kl_div(q, p, reduction="sum", log_target=True).detach())
    _, outcome = _step(model, x, y, attack=attack, noise=noise)
    assert divergence > 0.01
    assert float(outcome.sums[1]) == pytest.approx(divergence, rel=1e-4)


def test_what_fgsm_gained_counts_from_its_start(setting):
    model, x, y = setting
    noise = torch.rand_like(x) * 2 - 1
    attack = AttackSettings("Linf", 0.1, 1, name="fgsm")
    for drawn, start in ((noise, (x + 0.1 * noise).clamp(0, 1)), (None, x)):
        found = find_adversarial(model, x, y, attack, drawn).x_adv
        gained = F.cross_entropy(model(found), y, reduction="sum") - F.cross_entropy(model(start), y, reduction="sum")
        _, outcome = _step(model, x, y, attack=attack, noise=drawn)
        assert float(outcome.sums[1]) == pytest.approx(float(gained.detach()), rel=1e-4)


def test_the_centre_of_the_ball_reaches_the_attack(setting):
    model, x, y = setting
    beyond = x * 6 - 3
    given = find_adversarial(model, beyond, y, AttackSettings("Linf", 0.1, 2, centre="given")).x_adv
    far = (beyond < -0.1) | (beyond > 1.1)
    assert torch.equal(given[far], beyond.clamp(0, 1)[far])
    assert not torch.equal(find_adversarial(model, beyond, y, AttackSettings("Linf", 0.1, 2)).x_adv[far], given[far])


def test_fgsm_step(setting):
    """Wong et al. 2020: start anywhere in the ball, one signed step of 1.25 eps, clipped."""
    model, x, y = setting
    noise = torch.rand_like(x) * 2 - 1
    start = (x + 0.1 * noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
    x_adv = torch.clamp(start.detach() + 0.125 * gradient.sign(), x - 0.1, x + 0.1).clamp(0, 1)
    weights, outcome = _step(
        model, x, y, attack=AttackSettings("Linf", 0.1, 1, name="fgsm", fgsm_alpha=1.25), noise=noise
    )
    assert float(outcome.sums[0]) / len(x) == pytest.approx(float(F.cross_entropy(model(x_adv), y).detach()), rel=1e-5)
    _close(weights, _after(model, lambda m: F.cross_entropy(m(x_adv), y)))


def test_in_pieces_as_at_once(setting):
    model, x, y = setting
    whole, one = _step(model, x, y, attack=AttackSettings("Linf", 0.1, 2))
    pieces, other = _step(model, x, y, attack=AttackSettings("Linf", 0.1, 2), micro_batch_size=3)
    _close(whole, pieces)
    torch.testing.assert_close(one.sums, other.sums)


def test_two_workers_add_up_to_one(setting):
    """Each has half the batch; the exchange adds their gradients."""
    model, x, y = setting
    gradients, figures = [], []

    def keep(parameters, sums):
        gradients.append([p.grad.clone() for p in parameters])
        figures.append(sums)
        return sums

    for rows in (slice(0, 4), slice(4, 8)):
        other = copy.deepcopy(model)
        train_step(other, _optimizer(other), x[rows], y[rows], precision=CPU, global_batch=8, reduce=keep)

    def add(parameters, sums):
        for parameter, first, second in zip(parameters, *gradients):
            parameter.grad.copy_(first + second)
        return figures[0] + figures[1]

    weights, outcome = _step(model, x[:4], y[:4], reduce=add)
    whole, expected = _step(model, x, y)
    torch.testing.assert_close(outcome.sums, expected.sums)
    torch.testing.assert_close(outcome.grad_norm, expected.grad_norm * 1.0)
    # _step divides by its own 4 rows; the gradients were replaced by those of the whole batch.
    _close(weights, whole)


def test_gradient_norm_and_clipping(setting):
    model, x, y = setting
    _, free = _step(model, x, y)
    other = copy.deepcopy(model)
    F.cross_entropy(other(x), y).backward()
    expected = torch.stack([p.grad.norm() for p in other.parameters()]).norm()
    torch.testing.assert_close(free.grad_norm, expected)
    clipped, outcome = _step(model, x, y, clip=float(expected) / 10)
    torch.testing.assert_close(outcome.grad_norm, expected)

    def tenth(m):
        return F.cross_entropy(m(x), y) / 10

    _close(clipped, _after(model, tenth))


def test_gradients_are_unscaled_before_their_norm_and_clipping(setting):
    """A loss scaler multiplies the loss by 2**16; neither the norm nor the update may show it."""
    model, x, y = setting
    expected, free = _step(model, x, y, clip=0.01)
    other = copy.deepcopy(model)
    precision = Precision("cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    result = train_step(other, _optimizer(other), x, y, precision=precision, global_batch=len(x), clip=0.01)
    assert float(free.grad_norm) > 0.01
    torch.testing.assert_close(result.grad_norm, free.grad_norm)
    _close(other.state_dict(), expected)


def test_reduced_precision_stays_near(setting):
    model, x, y = setting
    other = copy.deepcopy(model)
    outcome = train_step(
        other,
        _optimizer(other),
        x,
        y,
        attack=AttackSettings("Linf", 0.1, 2),
        precision=Precision("cpu", torch.bfloat16),
        global_batch=8,
    )
    _, exact = _step(model, x, y, attack=AttackSettings("Linf", 0.1, 2))
    assert outcome.sums.dtype == torch.float32
    assert float(outcome.sums[0]) == pytest.approx(float(exact.sums[0]), rel=0.05)


def test_random_numbers_depend_on_their_place_only():
    images = torch.zeros(6, 3, 4, 4)
    whole = row_noise(images, 0, seed=1, epoch=2, batch=3, normal=False)
    torch.rand(5)
    assert torch.equal(row_noise(images[:2], 4, seed=1, epoch=2, batch=3, normal=False), whole[4:])
    assert not torch.equal(row_noise(images, 0, seed=1, epoch=2, batch=4, normal=False), whole)
    assert float(whole.min()) >= -1
    assert float(whole.max()) <= 1
    seed_step(1, 2, 3, 0)
    first = torch.rand(3)
    seed_step(1, 2, 3, 1)
    assert not torch.equal(torch.rand(3), first)
    seed_step(1, 2, 3, 0)
    assert torch.equal(torch.rand(3), first)
    assert derive("a", 1) != derive("a", 2)
