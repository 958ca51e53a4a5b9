"""The table of attacks that training can use, and their settings. To add one: its module, and one row here.

This module does not import torch, so that a recipe is checked with it where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Loss = Literal["ce", "trades"]
Noise = Literal["uniform", "normal"]


@dataclass(frozen=True)
class AttackSettings:
    """One step's attack: the recipe's `attack` fields of the same names, with the radius of this step.

    Attributes:
        eps: radius in units of [0, 1] pixels.
        centre: the ball lies around the image clamped to [0, 1], or around its pixels as they are (see `apgd`).
    """

    norm: Literal["Linf", "L2", "L1"]
    eps: float
    steps: int
    return_iterate: Literal["best", "last"] = "best"
    name: str = "apgd"
    loss: Loss = "ce"
    trades_beta: float = 6.0
    random_start: bool = True
    fgsm_alpha: float = 1.25
    centre: Literal["clamped", "given"] = "clamped"


@dataclass(frozen=True)
class TrainingAttack:
    """What the rest of the project needs to know of one attack.

    Attributes:
        function: `module:function`, called as `function(model, images, targets, settings, noise)`; returns an
            `AttackResult`.
        forwards: cost of the settings' attack, in forward passes of the network.
        noise: distribution of the noise that its start point needs; None starts without one.
        norms: norms it knows.
        losses: training losses it can raise.
        max_steps: most gradient steps; None for any number.
    """

    function: str
    forwards: Callable[[AttackSettings], int]
    noise: Callable[[AttackSettings], Noise | None]
    norms: tuple[str, ...] = ("Linf", "L2", "L1")
    losses: tuple[Loss, ...] = ("ce", "trades")
    max_steps: int | None = None


def _apgd_forwards(settings: AttackSettings) -> int:
    """A gradient costs two forwards; choosing the best iterate one; TRADES predicts the clean images first."""
    return 2 * settings.steps + (settings.return_iterate == "best") + (settings.loss == "trades")


TRAINING_ATTACKS: dict[str, TrainingAttack] = {
    "apgd": TrainingAttack(
        function="components.attack.apgd:apgd_for_training",
        forwards=_apgd_forwards,
        noise=lambda settings: "normal" if settings.loss == "trades" else None,
    ),
    "fgsm": TrainingAttack(
        function="components.attack.fgsm:fgsm_for_training",
        forwards=lambda settings: 2,
        noise=lambda settings: "uniform" if settings.random_start else None,
        norms=("Linf",),
        losses=("ce",),
        max_steps=1,
    ),
}
"""Name in a recipe (`attack.name`) -> the attack."""
