"""A look at the weights being trained, on some held-out images: what the average shows only much later.

In eval mode and float32: clean accuracy, accuracy under the training attack, and under an attack of the same norm and
radius with the probe's steps. A network that resists the first attack and not the second has overfitted to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from components.attack.apgd import apgd, frozen
from components.train.config import TrainConfig
from components.train.preparing import start_noise
from components.train.seeds import derive
from components.train.step import Threat, find_adversarial
from components.train.world import World


def live_look(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    world: World,
    *,
    threat: Threat | None,
    seed: int,
) -> dict[str, float]:
    """live_clean_accuracy and, with an attack, live_attacked_accuracy and live_robust_accuracy; over all workers.

    Args:
        model: in any mode; left as it is.
        batches: this worker's held-out images in [0, 1] and labels (B,); as many are taken as health.images asks for.
        threat: the training attack as it is now.
    """
    counts = torch.zeros(4, dtype=torch.float64, device=world.device)
    first = world.share(config.batch_size).start
    rounds = math.ceil(config.health.images / config.batch_size)
    with frozen(model):
        for number, (images, labels) in zip(range(rounds), batches):
            counts[0] += len(labels)
            right = _right(model, images, labels)
            counts[1] += right.sum()
            if threat is None:
                continue
            noise = start_noise(
                config, threat, images, first_row=first, seed=derive("look", seed), epoch=0, batch=number
            )
            weak = find_adversarial(model, images, labels, threat, noise).x_adv
            strong = apgd(model, images, labels, norm=threat.norm, eps=threat.eps, steps=config.probe.steps).x_adv
            counts[2] += (right & _right(model, weak, labels)).sum()
            counts[3] += (right & _right(model, strong, labels)).sum()
    total, clean, attacked, robust = world.add_up(counts).tolist()
    if not total:
        return {}
    figures = {"live_clean_accuracy": clean / total}
    if threat is None:
        return figures
    return {**figures, "live_attacked_accuracy": attacked / total, "live_robust_accuracy": robust / total}


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(dim=1) == labels
