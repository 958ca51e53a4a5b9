"""Projections onto balls around images, without host synchronisation.

Shapes: images are (B, C, H, W) in [0, 1]; per-image scalars are (B, 1, 1, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
"""Added to norms before dividing, as AutoAttack does."""


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, 1, 1), to broadcast over images of the shape of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def norm_l2(v: Tensor) -> Tensor:
    """Returns the Euclidean norm of each image, (B, 1, 1, 1)."""
    return per_image(v.flatten(1).square().sum(dim=1).sqrt(), v)


def project_linf(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Returns the nearest point to `point` in {|p - x| <= eps} and [0, 1]."""
    return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)


def project_l2(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Scales into the ball, then clips to [0, 1]: APGD's projection, not the exact one onto the intersection."""
    delta = point - x
    length = norm_l2(delta)
    return (x + delta / (length + TINY) * length.clamp(max=eps)).clamp(0, 1)


def project_l1(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Returns the exact Euclidean projection onto {||p - x||_1 <= eps} and [0, 1] (Croce, Hein 2021, proposition 2.1).

    With u = point - x and c the distance of each entry to the bound of [0, 1], the projection moves x by
    sign(u) * min(max(|u| - t, 0), c).

    Its L1 norm falls piecewise linearly in t; the breakpoints |u| and |u| - c are sorted and the segment that meets
    eps is solved in float64.
    """
    u = (point - x).flatten(1)
    size = u.abs()
    space = torch.where(u > 0, 1 - x.flatten(1), x.flatten(1)).clamp(min=0)
    threshold = _l1_threshold(size.double(), space.double(), eps).to(size.dtype)
    shrunk = torch.minimum((size - threshold).clamp(min=0), space)
    return (x + (u.sign() * shrunk).view_as(x)).clamp(0, 1)


def _l1_threshold(size: Tensor, space: Tensor, eps: float) -> Tensor:
    """Returns the t >= 0 (B, 1) at which the shrunken vector's L1 norm is eps; 0 if the norm is smaller already."""
    breaks = torch.cat([size, (size - space).clamp(min=0)], dim=1)
    change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1)
    breaks, indices = breaks.sort(dim=1, descending=True)
    slope = change.gather(1, indices).cumsum(dim=1)
    # Going down from the largest breakpoint, the norm grows by slope * gap from one breakpoint to the next.
    ends = torch.cat([breaks[:, 1:], torch.zeros_like(breaks[:, :1])], dim=1)
    grown = (slope * (breaks - ends)).cumsum(dim=1)
    target = torch.full_like(grown[:, :1], eps)
    segment = torch.searchsorted(grown, target).clamp(max=grown.shape[1] - 1)
    excess = grown.gather(1, segment) - eps
    t = ends.gather(1, segment) + excess / slope.gather(1, segment).clamp(min=1)
    return torch.where(grown[:, -1:] <= eps, torch.zeros_like(t), t.clamp(min=0))
