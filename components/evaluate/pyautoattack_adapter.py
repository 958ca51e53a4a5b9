"""AutoAttack and its parts by pyautoattack 0.2.0: what the library can do, and a run that leaves the process as it was.

Facts about the library that this file rests on (all tested):
- targets are not capped: with fewer than ten classes a survivor that reaches an impossible rank ends in IndexError;
- the targeted DLR loss of APGD-T needs four logits;
- Square's first tiling for L2 and L1 crashes on sides such as 12, 14, 18, 19 and 24;
- it reseeds torch's global generators before every batch, and removes the installed trace function (debugger,
  coverage).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from components.errors import UserError
from components.evaluate.attack import AttackResult
from components.evaluate.attack_monitor import AttackMonitor
from components.evaluate.config import Threat
from components.threats import APGD_CE, APGD_T, ATTACKS, FAB_T, SQUARE, AttackPart

LIBRARY = f"pyautoattack {version('pyautoattack')}"
LOGGER = "auto-attack"
"""Name of the library's logger."""


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
    parts, fewest = ATTACKS[threat.attack].parts, ATTACKS[threat.attack].fewest_classes
    if num_classes < fewest:
        raise UserError(
            f"{threat.title} has targeted losses that need at least {fewest} classes",
            where="classes",
            value=num_classes,
            remedy="use attack: apgd-ce; with so few classes no result may be called AutoAttack",
        )
    if SQUARE in parts and threat.norm != "Linf" and not square_can_tile(resolution):
        near = [side for side in range(max(5, resolution - 4), resolution + 5) if square_can_tile(side)]
        raise UserError(
            f"{threat.title}: the Square attack of {LIBRARY} cannot tile images of this side in {threat.norm}",
            where="resolution",
            value=resolution,
            remedy=f"evaluate at one of {', '.join(map(str, near))}, or use attack: apgd-ce+apgd-t",
        )


def targets(threat: Threat, num_classes: int) -> dict[str, int]:
    """Number of target classes of each targeted part: the standard number, capped at the number of classes less one."""
    return {part.key: min(count, num_classes - 1) for part, count in _standard_targets(threat).items()}


def targets_note(threat: Threat, num_classes: int) -> str:
    """A sentence about capped targets; empty if none was capped."""
    most = num_classes - 1
    capped = [
        f"{part.title} {min(standard, most)} instead of {standard}"
        for part, standard in _standard_targets(threat).items()
        if most < standard
    ]
    return f"targets capped at classes - 1 = {most}: {', '.join(capped)}" if capped else ""


def _standard_targets(threat: Threat) -> dict[AttackPart, int]:
    """Target classes of the standard version: 9, and 5 for APGD-T in L1."""
    counts = {APGD_T: 5 if threat.norm == "L1" else 9, FAB_T: 9}
    return {part: counts[part] for part in ATTACKS[threat.attack].parts if part in counts}


def build(model: nn.Module, threat: Threat, *, num_classes: int, seed: int, device: torch.device) -> Any:
    """The library's object with the standard version's parameters, restricted to the threat's attacks.

    Built as `standard` and then restricted, because `custom` has other defaults (five restarts, no larger radii in L1).
    """
    attack = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    attack.attacks_to_run = [part.key for part in ATTACKS[threat.attack].parts]
    capped = targets(threat, num_classes)
    attack.apgd_targeted.n_target_classes = capped.get(APGD_T.key, 0)
    attack.fab.n_target_classes = capped.get(FAB_T.key, 0)
    return attack


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    seed: int,
    monitor: AttackMonitor,
) -> AttackResult:
    """Attacks one block as one batch of the library; see `AttackModule.run`."""
    with process_state_preserved() as warnings:
        library = build(model, threat, num_classes=num_classes, seed=seed, device=images.device)
        objects = {APGD_CE: library.apgd, APGD_T: library.apgd_targeted, FAB_T: library.fab, SQUARE: library.square}
        for part in ATTACKS[threat.attack].parts:
            objects[part].perturb = monitor.monitored(part, objects[part].perturb)
        adversarial, prediction = library.run_standard_evaluation(images, labels, batch_size=len(images))
    return AttackResult(adversarial, prediction, list(warnings))


@contextlib.contextmanager
def process_state_preserved() -> Iterator[list[str]]:
    """Restores afterwards what the library changes in the process; yields the list of the library's warnings.

    Restored: the trace function, the counters of the library's check for dynamic defences (module globals that never go
    back to zero), and the logger's set-up. torch's generators are restored by `attack_block`.
    """
    with _tracer_kept(), _counters_reset(), _warnings_caught() as warnings:
        yield warnings


@contextlib.contextmanager
def _tracer_kept() -> Iterator[None]:
    tracer = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(tracer)


@contextlib.contextmanager
def _counters_reset() -> Iterator[None]:
    before = dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        checks.funcs.update(before)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages:
            self.messages.append(message)


@contextlib.contextmanager
def _warnings_caught() -> Iterator[list[str]]:
    logger, collector = logging.getLogger(LOGGER), _Collector()
    kept = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate, level = kept
        logger.setLevel(level)
