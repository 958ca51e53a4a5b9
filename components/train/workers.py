"""A number of workers that may vary: how a recipe writes it, and which number a cluster gets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.train.config_checks import shares_evenly

if TYPE_CHECKING:
    from components.train.config import TrainConfig

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


def split_range(document: dict[str, Any]) -> dict[str, Any]:
    """`workers: 1-4` or `[1, 4]` as `workers: 4, workers_min: 1`; any other document as it is.

    `workers` stays the number that a cluster is asked for.

    Raises:
        UserError: a text or list that is no range.
    """
    written = document.get("workers")
    if isinstance(written, str) and (found := _RANGE.fullmatch(written)):
        ends: list[Any] = [int(found[1]), int(found[2])]
    elif isinstance(written, (list, tuple)):
        ends = list(written)
    else:
        return document
    if len(ends) != 2 or not all(type(end) is int for end in ends) or not 1 <= ends[0] <= ends[1]:
        raise UserError(
            "a range of workers is its least and its largest number, 1 or more",
            where="workers",
            value=written,
            remedy="write workers: 1-4, or one number",
        )
    return {**document, "workers": ends[1], "workers_min": ends[0]}


def workers_for(config: TrainConfig, *, available: float, unit: str) -> int:
    """The largest number in the recipe's range that the cluster holds and that shares the batch evenly.

    Args:
        available: cores or GPUs of the cluster; a worker takes one.
        unit: what is counted, for the message.

    Raises:
        UserError: the cluster is too small for every number in the range.
    """
    least, most = config.worker_range
    fitting = [n for n in range(least, most + 1) if n <= available and shares_evenly(config, n)]
    if fitting:
        return fitting[-1]
    even = [n for n in range(least, most + 1) if shares_evenly(config, n)]
    asked = f"{least}-{most}" if least != most else most
    also = f" and a batch of {config.batch_size} needs {even[0]} or more" if even and even[0] > least else ""
    raise UserError(
        f"the cluster has {available:g} {unit} for the training workers{also}",
        where="workers",
        value=asked,
        remedy="ask for fewer workers or a larger cluster",
    )
