"""pyautoattack 0.2.0: what it can do with a model and a threat, and the attack object set up for them.

Facts about the library that this file rests on (all tested):
- targets are not capped: with fewer than ten classes a survivor that reaches an impossible rank ends in IndexError;
- the targeted DLR loss of APGD-T needs four logits;
- Square's first tiling for L2 and L1 crashes on sides such as 12, 14, 18, 19 and 24.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import nn

from components.errors import UserError
from components.evaluate.config import Threat

LIBRARY = f"pyautoattack {version('pyautoattack')}"
FEWEST_CLASSES = 4
"""APGD-T's loss divides by the mean of the third and fourth largest logits."""

STAGES: dict[str, tuple[str, ...]] = {
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "apgd-ce+apgd-t": ("apgd-ce", "apgd-t"),
    "apgd-ce": ("apgd-ce",),
}
"""The library's attacks behind each name; each sees only the images that survived the ones before it."""

TITLES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


def square_can_tile(side: int) -> bool:
    """Whether Square's L2 and L1 start fits an image of `side` px; it tiles with squares of side // 5."""
    tile = side // 5
    margin = (side - tile * 5) // 2
    return tile >= 1 and (tile == 1 or margin + side // tile * tile <= side)


def refuse_impossible(threat: Threat, *, num_classes: int, resolution: int) -> None:
    """Refuses what the library cannot do, before any work.

    Raises:
        UserError: too few classes for the targeted attacks, or a side on which Square crashes.
    """
    if num_classes < FEWEST_CLASSES and "apgd-t" in STAGES[threat.attack]:
        raise UserError(
            f"{threat.title} has targeted losses that need at least {FEWEST_CLASSES} classes",
            where="classes",
            value=num_classes,
            remedy="use attack: apgd-ce; with so few classes nothing may be called AutoAttack",
        )
    if "square" in STAGES[threat.attack] and threat.norm != "Linf" and not square_can_tile(resolution):
        near = [side for side in range(max(5, resolution - 4), resolution + 5) if square_can_tile(side)]
        raise UserError(
            f"{threat.title}: the Square attack of {LIBRARY} cannot tile images of this side in {threat.norm}",
            where="resolution",
            value=resolution,
            remedy=f"evaluate at one of {', '.join(map(str, near))}, or use attack: apgd-ce+apgd-t",
        )


def targets(threat: Threat, num_classes: int) -> dict[str, int]:
    """Target classes of each targeted attack: the standard number, capped at the number of classes less one."""
    standard = standard_targets(threat)
    return {name: min(count, num_classes - 1) for name, count in standard.items()}


def standard_targets(threat: Threat) -> dict[str, int]:
    """What the standard version uses: 9, and 5 for APGD-T in L1."""
    counts = {"apgd-t": 5 if threat.norm == "L1" else 9, "fab-t": 9}
    return {name: counts[name] for name in STAGES[threat.attack] if name in counts}


def targets_note(threat: Threat, num_classes: int) -> str:
    """A sentence about capped targets; empty where nothing was capped."""
    used, standard = targets(threat, num_classes), standard_targets(threat)
    capped = [
        f"{TITLES[name]} {used[name]} instead of {standard[name]}" for name in used if used[name] < standard[name]
    ]
    return f"targets capped at classes - 1 = {num_classes - 1}: {', '.join(capped)}" if capped else ""


def build(model: nn.Module, threat: Threat, *, num_classes: int, seed: int, device: torch.device) -> Any:
    """The library's object with the standard version's parameters, restricted to the threat's attacks.

    Built as `standard` and then restricted, because `custom` has other defaults (five restarts, no larger radii in L1).
    """
    attack = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    attack.attacks_to_run = list(STAGES[threat.attack])
    capped = targets(threat, num_classes)
    attack.apgd_targeted.n_target_classes = capped.get("apgd-t", 0)
    attack.fab.n_target_classes = capped.get("fab-t", 0)
    return attack
