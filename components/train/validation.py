"""Validation during training, on held-out training images, and the choice of the weights that are kept.

`validate_ema` measures the EMA weights: clean accuracy, and robust accuracy under a short APGD with more steps than
training uses. `validate_raw_weights` measures the raw (non-averaged) weights on a few of the images, where problems
show many epochs before they show in the EMA weights: clean accuracy, accuracy under the training attack, and under an
attack of the same norm and radius with the validation's steps. A network that resists the first attack and not the
second has overfitted to it. Both run in eval mode and float32.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.attack.apgd import Norm, apgd, frozen
from components.attack.training_attacks import AttackSettings
from components.errors import UserError
from components.train.batch import start_noise
from components.train.config import TrainConfig
from components.train.distributed import Distributed
from components.train.seeds import derive
from components.train.train_step import find_adversarial

RANKING = "robust accuracy first, clean accuracy second, the earlier epoch on a tie"
_KEPT = ("epoch", "step", "clean_accuracy", "robust_accuracy")


def validate_ema(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    distributed: Distributed,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Returns clean_accuracy and, if a radius is known, robust_accuracy, over all workers. Every worker has to call it.

    For each of the recipe's extra norms also robust_accuracy_<norm>.

    Args:
        model: in eval mode.
        batches: this worker's held-out images in [0, 1] and labels (B,).
        progress: called after each batch with its number of images.
    """
    balls = _balls(config)
    counts = torch.zeros(2 + len(balls), dtype=torch.float64, device=distributed.device)
    for images, labels in batches:
        counts[0] += len(labels)
        right = _right(model, images, labels)
        counts[1] += right.sum()
        for place, (_, norm, eps) in enumerate(balls, start=2):
            found = apgd(model, images, labels, norm=norm, eps=eps, steps=config.validation.steps)
            counts[place] += (right & _right(model, found.x_adv, labels)).sum()
        if progress is not None:
            progress(len(labels))
    total, clean, *robust = distributed.all_reduce_sum(counts).tolist()
    if not total:
        return {}
    named = {name: count / total for (name, _, _), count in zip(balls, robust)}
    return {"clean_accuracy": clean / total, **named}


def _balls(config: TrainConfig) -> list[tuple[str, Norm, float]]:
    """Returns key, norm and radius of each attack."""
    attack, validation = config.attack, config.validation
    norm = validation.norm or (attack.norm if attack else "Linf")
    eps = validation.eps or (attack.eps if attack else None)
    main: list[tuple[str, Norm, float]] = [] if eps is None else [("robust_accuracy", norm, eps)]
    return main + [(f"robust_accuracy_{extra}", extra, radius) for extra, radius in validation.extra_norms.items()]


def validate_raw_weights(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    distributed: Distributed,
    *,
    attack: AttackSettings | None,
    seed: int,
) -> dict[str, float]:
    """Returns raw_clean_accuracy and, with an attack, raw_attacked_accuracy and raw_robust_accuracy, over all workers.

    Args:
        model: in any mode, which is restored.
        batches: this worker's held-out images in [0, 1] and labels (B,); as many are taken as monitor.num_images asks.
        attack: the training attack at this moment.
    """
    counts = torch.zeros(4, dtype=torch.float64, device=distributed.device)
    first = distributed.share(config.batch_size).start
    rounds = math.ceil(config.monitor.num_images / config.batch_size)
    with frozen(model):
        for number, (images, labels) in zip(range(rounds), batches):
            counts[0] += len(labels)
            right = _right(model, images, labels)
            counts[1] += right.sum()
            if attack is None:
                continue
            noise = start_noise(attack, images, first_row=first, seed=derive("look", seed), epoch=0, batch=number)
            weak = find_adversarial(model, images, labels, attack, noise).x_adv
            steps = config.validation.steps
            strong = apgd(model, images, labels, norm=attack.norm, eps=attack.eps, steps=steps).x_adv
            counts[2] += (right & _right(model, weak, labels)).sum()
            counts[3] += (right & _right(model, strong, labels)).sum()
    total, clean, attacked, robust = distributed.all_reduce_sum(counts).tolist()
    if not total:
        return {}
    figures = {"raw_clean_accuracy": clean / total}
    if attack is None:
        return figures
    return {**figures, "raw_attacked_accuracy": attacked / total, "raw_robust_accuracy": robust / total}


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(dim=1) == labels


def score(entry: Mapping[str, Any]) -> list[float]:
    """Returns what `keep_weights: best` compares between validations; larger is better."""
    return [entry.get("robust_accuracy", 0.0), entry["clean_accuracy"]]


def describe_split(held: Sequence[int], total: int, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Describes the held-out images. The digest shows whether two trainings held out the same images.

    Args:
        held: sorted indices of the held-out images in the training split.
        total: images of the training split.
        seed: seed of the draw.

    Raises:
        UserError: none are held out, but the best weights are to be chosen by them.
    """
    if config.keep_weights == "best" and not held:
        raise UserError(
            f"of {total} training images none is held out, so the best weights cannot be chosen",
            where="validation.fraction",
            value=config.validation.fraction,
            remedy="hold out more, or set keep_weights: last",
        )
    return {
        "of": "train",
        "images": len(held),
        "total": total,
        "fraction": config.validation.fraction,
        "at_most": config.validation.max_images,
        "seed": seed,
        "sha256": hashlib.sha256(json.dumps(list(held), separators=(",", ":")).encode()).hexdigest(),
    }


def describe_choice(
    history: Sequence[Mapping[str, Any]], chosen_epoch: int | None, config: TrainConfig, split: Mapping[str, Any]
) -> dict[str, Any]:
    """Describes the choice of the weights, for the stage's result and the model card.

    Args:
        chosen_epoch: epoch of the best validation; None if the last weights are kept.
    """
    validated = [entry for entry in history if entry.get("clean_accuracy") is not None]
    if chosen_epoch is None:
        last = history[-1]["epoch"] if history else 0
        return {"rule": "last", "ema_decay": config.ema_decay, "epoch": last, "split": dict(split)}
    chosen = next(entry for entry in validated if entry["epoch"] == chosen_epoch)
    others = [entry for entry in validated if entry is not chosen]
    second = max(others, key=lambda entry: (score(entry), -entry["epoch"]), default=None)
    return {
        "rule": "best validation",
        "ranking": RANKING,
        "ema_decay": config.ema_decay,
        "validations": len(validated),
        **_figures(chosen),
        "runner_up": _figures(second) if second else None,
        "split": dict(split),
    }


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in _KEPT if entry.get(name) is not None}
