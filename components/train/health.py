"""Signs that a training has gone wrong, and what follows."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.errors import UserError
from components.train.config import HealthConfig


def require_finite(value: float, *, what: str, epoch: int, batch: int) -> None:
    """Stops a training whose figures are no numbers any more.

    Raises:
        UserError: `value` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is no longer a finite number",
            where=f"epoch {epoch + 1}, batch {batch}",
            value=value,
            remedy="lower lr, lengthen warmup_epochs, or train in fp32; the last good checkpoint is kept",
        )


def collapsed(history: Sequence[Mapping[str, Any]], config: HealthConfig) -> str:
    """A sentence where clean and robust accuracy have both lost `collapse_drop` of their best; else empty."""
    probes = [entry for entry in history if entry.get("clean_accuracy") is not None]
    if len(probes) < 2:
        return ""
    kept, last = 1 - config.collapse_drop, probes[-1]
    clean_best = max(entry["clean_accuracy"] for entry in probes)
    robust = [entry["robust_accuracy"] for entry in probes if entry.get("robust_accuracy") is not None]
    if last["clean_accuracy"] > kept * clean_best or (robust and robust[-1] > kept * max(robust)):
        return ""
    return f"training collapsed: held-out clean accuracy fell from {clean_best:.1%} to {last['clean_accuracy']:.1%}"


def watch(history: Sequence[Mapping[str, Any]], config: HealthConfig) -> None:
    """Called after every probe: warns or stops, as the recipe says.

    Raises:
        UserError: training collapsed and the recipe says to stop.
    """
    sentence = collapsed(history, config)
    if not sentence:
        return
    if config.on_collapse == "stop":
        raise UserError(
            sentence, remedy="lower lr, lengthen warmup_epochs, start from a clean model, or use a ConvStem"
        )
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
