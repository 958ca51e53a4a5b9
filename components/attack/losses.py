"""The objectives that attacks maximise: one value per image, so that no image affects another's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), labels) -> loss (B,); larger is worse for the model."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each image, never in half precision.

    Args:
        logits: (B, K).
        labels: class indices (B,) or probabilities (B, K), as from mixup.

    Returns:
        (B,) in float32, or in float64 for float64 logits.
    """
    logits = full_precision(logits)
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none")
    return -(labels.to(logits.dtype) * F.log_softmax(logits, dim=1)).sum(dim=1)


def kl_from(clean_logits: Tensor) -> Objective:
    """Returns TRADES' objective (Zhang et al. 2019, eq. 5): KL(p(clean) || p(adversarial)); labels are not used."""
    log_p = F.log_softmax(full_precision(clean_logits), dim=1)

    def divergence(logits: Tensor, labels: Tensor) -> Tensor:
        return kl(log_p, F.log_softmax(full_precision(logits), dim=1))

    return divergence


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns KL(p || q) of each row, from log-probabilities (B, K)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def full_precision(logits: Tensor) -> Tensor:
    """Returns half-precision logits as float32, others unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
