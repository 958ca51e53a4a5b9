"""The balls: inside, nearest, and unchanged where nothing is to be done."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.attack.projections import project_l1, project_l2, project_linf


def _points(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x, x + spread * torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64)


def _bisected(point, x, eps):
    """Independent: the threshold by 200 halvings."""
    u = (point - x).flatten(1)
    headroom = torch.where(u > 0, 1 - x.flatten(1), x.flatten(1))
    low, high = torch.zeros(len(u), 1, dtype=u.dtype), u.abs().amax(1, keepdim=True)
    shrunk = lambda t: torch.minimum((u.abs() - t).clamp(min=0), headroom)  # noqa: E731
    inside = shrunk(low).sum(1, keepdim=True) <= eps
    for _ in range(200):
        middle = (low + high) / 2
        over = shrunk(middle).sum(1, keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    t = torch.where(inside, torch.zeros_like(high), high)
    return x + (u.sign() * shrunk(t)).view_as(x)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.001, 5), eps=st.floats(0.01, 30))
def test_l1_is_the_exact_projection(seed, spread, eps):
    x, point = _points(seed, spread)
    found = project_l1(point, x, eps)
    torch.testing.assert_close(found, _bisected(point, x, eps), atol=1e-9, rtol=0)
    assert float((found - x).abs().flatten(1).sum(1).max()) <= eps + 1e-9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.001, 5), eps=st.floats(0.001, 3))
def test_l2_and_linf_end_inside(seed, spread, eps):
    x, point = _points(seed, spread)
    for project, size in (
        (project_l2, lambda d: d.flatten(1).norm(dim=1)),
        (project_linf, lambda d: d.flatten(1).abs().amax(1)),
    ):
        found = project(point, x, eps)
        assert float(size(found - x).max()) <= eps + 1e-9
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_points_inside_stay(seed):
    x, _ = _points(seed, 1)
    near = (x + 1e-4 * (torch.rand_like(x) - 0.5)).clamp(0, 1)
    for project, eps in ((project_linf, 0.1), (project_l2, 0.1), (project_l1, 0.1)):
        torch.testing.assert_close(project(near, x, eps), near, atol=1e-12, rtol=0)


def test_l1_in_float32_at_image_size():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 224, 224, generator=generator)
    found = project_l1(x + 0.3 * torch.randn(2, 3, 224, 224, generator=generator), x, 75.0)
    assert float((found - x).abs().flatten(1).sum(1).double().max()) <= 75 * (1 + 1e-5)
    assert float((found - x).abs().flatten(1).sum(1).double().min()) >= 75 * (1 - 1e-4)
