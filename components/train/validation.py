"""A cheap look at the averaged weights on held-out images: clean accuracy, and robust accuracy under a short APGD.

The attack runs in float32 and in eval mode with more steps than training uses, so that it sees what training hides.

A look at the weights being trained, on some held-out images: what the average shows only much later.

In eval mode and float32: clean accuracy, accuracy under the training attack, and under an attack of the same norm and
radius with the probe's steps. A network that resists the first attack and not the second has overfitted to it.

Which weights a stage keeps, and what one needs to judge that choice: rule, split, chosen probe and runner-up.
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
from components.errors import UserError
from components.train.batch import start_noise
from components.train.config import TrainConfig
from components.train.distributed import World
from components.train.seeds import derive
from components.train.train_step import Threat, find_adversarial


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


ORDER = "robust accuracy first, clean accuracy second, the earlier epoch on a tie"
_KEPT = ("epoch", "step", "clean_accuracy", "robust_accuracy")


def score(entry: Mapping[str, Any]) -> list[float]:
    """What `select: best` compares of two probes, the larger the better."""
    return [entry.get("robust_accuracy", 0.0), entry["clean_accuracy"]]


def describe_split(held: Sequence[int], total: int, config: TrainConfig, seed: int) -> dict[str, Any]:
    """The held-out images: never trained on, never reported; the digest says whether two trainings held out the same.

    Args:
        held: their sorted indices in the training split.
        total: images of the training split.
        seed: the one they were drawn with.

    Raises:
        UserError: none are held out, and the best weights are to be chosen by them.
    """
    if config.select == "best" and not held:
        raise UserError(
            f"of {total} training images none is held out, so there is nothing to choose the best weights by",
            where="probe.fraction",
            value=config.probe.fraction,
            remedy="hold out more, or set select: last",
        )
    return {
        "of": "train",
        "images": len(held),
        "total": total,
        "fraction": config.probe.fraction,
        "at_most": config.probe.images,
        "seed": seed,
        "sha256": hashlib.sha256(json.dumps(list(held), separators=(",", ":")).encode()).hexdigest(),
    }


def describe_choice(
    history: Sequence[Mapping[str, Any]], chosen_epoch: int | None, config: TrainConfig, split: Mapping[str, Any]
) -> dict[str, Any]:
    """The weights kept, as they are told in the stage's result and on the model card.

    Args:
        chosen_epoch: the best probe's epoch; None where the last weights are kept.
    """
    probes = [entry for entry in history if entry.get("clean_accuracy") is not None]
    if chosen_epoch is None:
        last = history[-1]["epoch"] if history else 0
        return {"rule": "last", "ema_decay": config.ema_decay, "epoch": last, "split": dict(split)}
    chosen = next(entry for entry in probes if entry["epoch"] == chosen_epoch)
    others = [entry for entry in probes if entry is not chosen]
    second = max(others, key=lambda entry: (score(entry), -entry["epoch"]), default=None)
    return {
        "rule": "best probe",
        "order": ORDER,
        "ema_decay": config.ema_decay,
        "probes": len(probes),
        **_figures(chosen),
        "runner_up": _figures(second) if second else None,
        "split": dict(split),
    }


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in _KEPT if entry.get(name) is not None}
