"""Training APGD against a plain one, written image by image from the published description."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.attack.apgd import apgd

RADII = {"Linf": 0.08, "L2": 0.9, "L1": 9.0}


def _l1_nearest(x, point, eps):
    """Projection on the L1 ball and [0, 1]: the threshold falls until what is left of the step has length eps.

    A walk over the sorted corners of that length as a function of the threshold, one entry at a time in Python's own
    float64: an entry begins to count where the threshold passes its size, and ends where it reaches the box.
    """
    u = point - x
    headroom = torch.where(u > 0, 1 - x, x)
    threshold = torch.tensor(_l1_threshold(u.abs().flatten().tolist(), headroom.flatten().tolist(), eps), dtype=x.dtype)
    return (x + u.sign() * torch.minimum((u.abs() - threshold).clamp(min=0), headroom)).clamp(0, 1)


def _l1_threshold(sizes, headrooms, eps):
    corners = [(size, 1) for size in sizes]
    corners += [(max(size - headroom, 0.0), -1) for size, headroom in zip(sizes, headrooms, strict=True)]
    corners.sort(key=lambda corner: -corner[0])
    length, growing = 0.0, 0
    for (here, change), (ahead, _) in itertools.pairwise([*corners, (0.0, 0)]):
        growing += change
        length += growing * (here - ahead)
        if length >= eps:
            return max(ahead + (length - eps) / max(growing, 1), 0.0)
    return 0.0


def _nearest(norm, x, point, eps):
    if norm == "Linf":
        return torch.max(torch.min(point, x + eps), x - eps).clamp(0, 1)
    if norm == "L1":
        return _l1_nearest(x, point, eps)
    delta = point - x
    length = (delta**2).sum().sqrt()
    return (x + delta / (length + 1e-12) * min(float(length), eps)).clamp(0, 1)


def _plain(model, x, y, norm, eps, steps):
    """One image (C, H, W); y a class or a distribution. Returns the iterate of largest loss, and the restarts from it."""

    def probe(point):
        point = point.clone().requires_grad_()
        logits = model(point[None])[0]
        loss = -F.log_softmax(logits, 0)[y] if y.ndim == 0 else -(y * F.log_softmax(logits, 0)).sum()
        return torch.autograd.grad(loss, point)[0], float(loss.detach())

    entries = x.numel()
    step, top_k, moved_before = (eps if norm == "L1" else 2 * eps), 0.05, float(entries)
    interval = max(int(0.04 * steps), 1) if norm == "L1" else max(int(0.22 * steps), 1)
    current, previous = x.clone(), x.clone()
    gradient, loss = probe(current)
    best, best_gradient, best_loss = current, gradient, loss
    table, since, halved_before, best_before, restarts = [0.0], 0, True, best_loss, 0
    for i in range(steps):
        momentum, previous = current - previous, current
        a = 0.75 if i else 1.0
        if norm == "L1":
            order = gradient.abs().flatten().sort().values
            threshold = order[int(min(max((1 - top_k) * entries, 0), entries - 1))]
            sign = torch.where(gradient.abs() >= threshold, gradient.sign(), torch.zeros_like(gradient))
            current = _nearest(norm, x, current + step * sign / (sign.abs().sum() + 1e-10), eps)
        else:
            direction = gradient.sign() if norm == "Linf" else gradient / ((gradient**2).sum().sqrt() + 1e-12)
            ahead = _nearest(norm, x, current + step * direction, eps)
            current = _nearest(norm, x, current + (ahead - current) * a + momentum * (1 - a), eps)
        gradient, loss = probe(current)
        table.append(loss)
        if loss > best_loss:
            best, best_gradient, best_loss = current, gradient, loss
        since += 1
        if since < interval:
            continue
        if norm == "L1":
            moved = float((best != x).sum())
            back, top_k = moved / moved_before < 0.95, moved / entries / 1.5
            step = eps if back else min(max(step / 1.5, eps / 10), eps)
            moved_before = moved
        else:
            rises = sum(table[-j] > table[-j - 1] for j in range(1, interval + 1))
            back = rises <= 0.75 * interval or (not halved_before and best_before >= best_loss)
            step, halved_before, best_before = (step / 2 if back else step), back, best_loss
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        since = 0
        if back:
            current, gradient, restarts = best, best_gradient, restarts + 1
    return best, restarts


def _setting(dtype, soft):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(54, 4),
    )
    with torch.no_grad():
        model[-1].weight.mul_(6)
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 4, (6,), generator=generator)
    if soft:
        y = (
            0.7 * F.one_hot(y, 4).double()
            + 0.3 * torch.softmax(torch.randn(6, 4, generator=generator, dtype=torch.float64), 1)
        ).to(dtype)
    return model.to(dtype).eval(), x, y


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_plain_attack(norm, steps, soft, dtype):
    """Image by image, so that both see sums of the same rounding: exactly in float64, to 1e-6 in float32."""
    model, x, y = _setting(dtype, soft)
    found = torch.cat(
        [apgd(model, x[i : i + 1], y[i : i + 1], norm=norm, eps=RADII[norm], steps=steps).x_adv for i in range(len(x))]
    )
    plain = torch.stack([_plain(model, image, label, norm, RADII[norm], steps)[0] for image, label in zip(x, y)])
    if dtype == torch.float64:
        assert torch.equal(found, plain)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", RADII)
def test_a_batch_is_attacked_like_its_images(norm):
    model, x, y = _setting(torch.float64, soft=True)
    found = apgd(model, x, y, norm=norm, eps=RADII[norm], steps=10).x_adv
    plain = torch.stack([_plain(model, image, label, norm, RADII[norm], 10)[0] for image, label in zip(x, y)])
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", RADII)
def test_the_comparison_meets_the_adaptive_branches(norm):
    """It would say little if no image ever went back to its best point."""
    model, x, y = _setting(torch.float64, soft=False)
    assert sum(_plain(model, image, label, norm, RADII[norm], 10)[1] for image, label in zip(x, y)) > 0


def test_l1_counts_the_moved_entries_of_the_best_point():
    """On a rough network the best point is often an earlier one, which moves other entries than the newest."""
    _, x, y = _setting(torch.float64, soft=False)
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(384, 4)]
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.mul_(8)
    images = list(zip(x, y))
    found = [apgd(model, image[None], label[None], norm="L1", eps=12.0, steps=10).x_adv[0] for image, label in images]
    plain = [_plain(model, image, label, "L1", 12.0, 10)[0] for image, label in images]
    torch.testing.assert_close(torch.stack(found), torch.stack(plain), atol=1e-12, rtol=0)
