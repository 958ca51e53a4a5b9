"""What a step is made of besides the weights: its attack, its mixed images and targets, and its start noise.

All are pure functions of the configuration, the seed and the place in the training.

Soft targets and the mixing of images: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), one draw a batch.

The draw is a pure function of (seed, epoch, step), so it is the same on every worker and after a restart. timm 1.0.31
mixes image i with image B-1-i of a worker's batch; here it is its neighbour (0 with 1, 2 with 3, ...), which is the
same distribution over a shuffled batch and does not depend on how many workers share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from components.train.config import TrainConfig
from components.train.seeds import row_noise
from components.train.train_step import Threat

# MERGED


def threat_at(config: TrainConfig, at: float) -> Threat | None:
    """The attack at epoch `at`; its radius grows where the recipe warms it up. None: a clean step.

    The radius is eps * min(at / eps_warmup, 1), step by step; a linear warm-up as in Debenedetti et al., 2209.07399,
    over 10 epochs there.

    Args:
        at: epochs since the start, with the part of the present one.
    """
    attack = config.attack
    if attack is None:
        return None
    share = min(at / attack.eps_warmup, 1.0) if attack.eps_warmup else 1.0
    if share == 0:
        return None
    return Threat(
        norm=attack.norm,
        eps=attack.eps * share,
        steps=attack.steps,
        form=attack.form,
        kind=attack.kind,
        loss=attack.loss,
        beta=attack.beta,
        fgsm_step=attack.fgsm_step,
        centre="given" if config.faithful else "clamped",
    )


def mixed(
    config: TrainConfig, images: Tensor, labels: Tensor, *, classes: int, seed: int, epoch: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and targets: classes (B,), or probabilities (B, K) where smoothed or mixed."""
    mix = None
    if config.mixes:
        side = (images.shape[2], images.shape[3])
        settings = {"mixup": config.mixup, "cutmix": config.cutmix, "prob": config.mixup_prob}
        mix = draw_mix(seed, epoch, batch, side=side, **settings)
        images = mix_images(images, mix)
    if mix is None and config.smoothing == 0:
        return images, labels
    return images, soft_targets(labels, classes, config.smoothing, mix)


def start_noise(
    config: TrainConfig,
    threat: Threat | None,
    images: Tensor,
    *,
    first_row: int,
    seed: int,
    epoch: int,
    batch: int,
) -> Tensor | None:
    """Noise for the attack's start (B, C, H, W): normal for TRADES, uniform for FGSM with a random start, else None.

    Args:
        first_row: place of this worker's first image in the global batch.
    """
    if threat is None or config.attack is None:
        return None
    if threat.loss != "trades" and not (threat.kind == "fgsm" and config.attack.random_start):
        return None
    return row_noise(images, first_row, seed=seed, epoch=epoch, batch=batch, normal=threat.loss == "trades")


_STREAM = 0x6D6978  # keeps these draws apart from others made from the same (seed, epoch, step)
_CUTMIX_SHARE = 0.5


@dataclass(frozen=True)
class Mix:
    """One batch's draw: `share` of its own image each target keeps; the box (top, bottom, left, right) if cut."""

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(
    seed: int, epoch: int, step: int, *, mixup: float, cutmix: float, prob: float, side: tuple[int, int]
) -> Mix:
    """The draw of one batch (timm's `Mixup(mode="batch", switch_prob=0.5, correct_lam=True)`).

    Args:
        mixup, cutmix: alpha of the Beta distributions; 0 turns one off.
        prob: share of the batches that are mixed.
        side: height and width of the images.
    """
    random = np.random.default_rng([_STREAM, seed, epoch, step])
    if random.random() >= prob or (mixup <= 0 and cutmix <= 0):
        return Mix(1.0)
    cut = cutmix > 0 and (mixup <= 0 or random.random() < _CUTMIX_SHARE)
    alpha = cutmix if cut else mixup
    share = float(random.beta(alpha, alpha))
    return _cut(random, share, side) if cut else Mix(share)


def _cut(random: np.random.Generator, share: float, side: tuple[int, int]) -> Mix:
    height, width = side
    ratio = np.sqrt(1 - share)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    y, x = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(y - cut_h // 2, 0), min(y + (cut_h + 1) // 2, height)
    left, right = max(x - cut_w // 2, 0), min(x + (cut_w + 1) // 2, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def neighbours(values: Tensor) -> Tensor:
    """Rows swapped in pairs: 1, 0, 3, 2, ...

    Raises:
        ValueError: an odd number of rows.
    """
    if len(values) % 2:
        raise ValueError(f"mixing pairs the images of a batch and needs an even number, got {len(values)}")
    return values[torch.arange(len(values), device=values.device) ^ 1]


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(B, C, H, W) mixed; the input is left as it is."""
    if mix.share == 1.0:
        return images
    partner = neighbours(images)
    if mix.box is None:
        return images * mix.share + partner * (1 - mix.share)
    top, bottom, left, right = mix.box
    mixed = images.clone(memory_format=torch.preserve_format)
    mixed[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
    return mixed


def soft_targets(labels: Tensor, classes: int, smoothing: float, mix: Mix | None = None) -> Tensor:
    """Targets (B, K): the label's share is 1 - smoothing + smoothing / K, the others' smoothing / K, then mixed."""
    targets = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
    if mix is None or mix.share == 1.0:
        return targets
    return targets * mix.share + neighbours(targets) * (1 - mix.share)
