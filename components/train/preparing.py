"""What a step is made of besides the weights: its attack, its mixed images and targets, and its start noise.

All are pure functions of the configuration, the seed and the place in the training.
"""

from __future__ import annotations

from torch import Tensor

from components.train.config import TrainConfig
from components.train.mix import draw_mix, mix_images, soft_targets
from components.train.seeds import row_noise
from components.train.step import Threat


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
