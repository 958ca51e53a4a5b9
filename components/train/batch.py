"""Everything a training step takes besides the weights: its attack, the attack's noise, mixed images and soft targets.

All are pure functions of the configuration, the seed and the position in the training, so they are the same on every
worker and after a restart.

Mixing is mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), one draw per batch. timm 1.0.31 mixes image i with
image B-1-i of a worker's batch. This module mixes neighbours (0 with 1, 2 with 3, ...), which gives the same
distribution over a shuffled batch and does not depend on the number of workers that share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from components.attack.training_attacks import TRAINING_ATTACKS, AttackSettings
from components.train.config import TrainConfig
from components.train.seeds import row_noise

_STREAM = 0x6D6978  # keeps these draws apart from others made from the same (seed, epoch, step)
_CUTMIX_SHARE = 0.5


def attack_at(config: TrainConfig, at: float) -> AttackSettings | None:
    """Returns the attack at epoch `at`; None for a clean step.

    With a warm-up the radius is eps * min(at / eps_warmup_epochs, 1), step by step: a linear warm-up as in Debenedetti
    et al., 2209.07399, who take 10 epochs.

    Args:
        at: epochs since the start, with the fraction of the current one.
    """
    attack = config.attack
    if attack is None:
        return None
    share = min(at / attack.eps_warmup_epochs, 1.0) if attack.eps_warmup_epochs else 1.0
    if share == 0:
        return None
    fields = attack.model_dump(exclude={"eps_warmup_epochs"})
    centre = "given" if config.match_released_code else "clamped"
    return AttackSettings(**{**fields, "eps": attack.eps * share, "centre": centre})


def start_noise(
    attack: AttackSettings | None, images: Tensor, *, first_row: int, seed: int, epoch: int, batch: int
) -> Tensor | None:
    """Returns the noise (B, C, H, W) that the attack's start point needs; None if it needs none.

    Args:
        first_row: row of this worker's first image in the global batch.
    """
    noise = TRAINING_ATTACKS[attack.name].noise(attack) if attack is not None else None
    if noise is None:
        return None
    return row_noise(images, first_row, seed=seed, epoch=epoch, batch=batch, normal=noise == "normal")


def mixed(
    config: TrainConfig, images: Tensor, labels: Tensor, *, classes: int, seed: int, epoch: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Returns images (B, C, H, W) and targets: classes (B,), or probabilities (B, K) if smoothed or mixed."""
    mix = None
    if config.mixes:
        side = (images.shape[2], images.shape[3])
        settings = {"mixup": config.mixup, "cutmix": config.cutmix, "prob": config.mixup_prob}
        mix = draw_mix(seed, epoch, batch, side=side, **settings)
        images = mix_images(images, mix)
    if mix is None and config.smoothing == 0:
        return images, labels
    return images, soft_targets(labels, classes, config.smoothing, mix)


@dataclass(frozen=True)
class Mix:
    """The draw of one batch.

    Attributes:
        share: share of its own image that each target keeps.
        box: (top, bottom, left, right) of the rectangle that is cut and replaced; None for mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(
    seed: int, epoch: int, step: int, *, mixup: float, cutmix: float, prob: float, side: tuple[int, int]
) -> Mix:
    """Returns the draw of one batch (timm's `Mixup(mode="batch", switch_prob=0.5, correct_lam=True)`).

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
    """Swaps rows in pairs: 1, 0, 3, 2, ...

    Raises:
        ValueError: an odd number of rows.
    """
    if len(values) % 2:
        raise ValueError(f"mixing pairs the images of a batch and needs an even number, got {len(values)}")
    return values[torch.arange(len(values), device=values.device) ^ 1]


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Returns the mixed images (B, C, H, W); the input is not changed."""
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
    """Returns targets (B, K): 1 - smoothing + smoothing / K for the label, smoothing / K for the others, then mixed."""
    targets = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
    if mix is None or mix.share == 1.0:
        return targets
    return targets * mix.share + neighbours(targets) * (1 - mix.share)
