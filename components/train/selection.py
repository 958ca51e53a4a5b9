"""Which weights a stage keeps, and what one needs to judge that choice: rule, split, chosen probe and runner-up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from components.errors import UserError
from components.train.config import TrainConfig

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
