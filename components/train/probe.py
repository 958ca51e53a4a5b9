"""A cheap look at the averaged weights on held-out images: clean accuracy, and robust accuracy under a short APGD.

The attack runs in float32 and in eval mode with more steps than training uses, so that it sees what training hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from components.attack.apgd import Norm, apgd
from components.train.config import TrainConfig
from components.train.world import World


def probe(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    world: World,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """clean_accuracy and, where a radius is known, robust_accuracy; over all workers, which all have to call it.

    For each of the recipe's other norms also robust_accuracy_<norm>.

    Args:
        model: in eval mode.
        batches: this worker's held-out images in [0, 1] and labels (B,).
        progress: told how many images are done.
    """
    balls = _balls(config)
    counts = torch.zeros(2 + len(balls), dtype=torch.float64, device=world.device)
    for images, labels in batches:
        counts[0] += len(labels)
        with torch.no_grad():
            right = model(images).argmax(dim=1) == labels
        counts[1] += right.sum()
        for place, (_, norm, eps) in enumerate(balls, start=2):
            found = apgd(model, images, labels, norm=norm, eps=eps, steps=config.probe.steps)
            with torch.no_grad():
                counts[place] += (right & (model(found.x_adv).argmax(dim=1) == labels)).sum()
        if progress is not None:
            progress(len(labels))
    total, clean, *robust = world.add_up(counts).tolist()
    if not total:
        return {}
    named = {name: count / total for (name, _, _), count in zip(balls, robust)}
    return {"clean_accuracy": clean / total, **named}


def _balls(config: TrainConfig) -> list[tuple[str, Norm, float]]:
    """Figure, norm and radius of each attack."""
    attack = config.attack
    norm = config.probe.norm or (attack.norm if attack else "Linf")
    eps = config.probe.eps or (attack.eps if attack else None)
    main: list[tuple[str, Norm, float]] = [] if eps is None else [("robust_accuracy", norm, eps)]
    return main + [(f"robust_accuracy_{other}", other, radius) for other, radius in config.probe.other_norms.items()]
