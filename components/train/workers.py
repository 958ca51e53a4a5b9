"""The number of Ray workers: how a recipe writes it, which numbers fit a batch, and which one a cluster gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.errors import UserError

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


def split_range(document: dict[str, Any]) -> dict[str, Any]:
    """Returns `num_workers: 1-4` or `[1, 4]` as `num_workers: 4, min_workers: 1`; any other document unchanged.

    `num_workers` stays the number of workers that a cluster is asked for.

    Raises:
        UserError: a text or list that is no range.
    """
    written = document.get("num_workers")
    if isinstance(written, str) and (found := _RANGE.fullmatch(written)):
        ends: list[Any] = [int(found[1]), int(found[2])]
    elif isinstance(written, (list, tuple)):
        ends = list(written)
    else:
        return document
    if len(ends) != 2 or not all(type(end) is int for end in ends) or not 1 <= ends[0] <= ends[1]:
        raise UserError(
            "a range of workers is its smallest and its largest number, 1 or more",
            where="num_workers",
            value=written,
            remedy="write num_workers: 1-4, or one number",
        )
    return {**document, "num_workers": ends[1], "min_workers": ends[0]}


def shares_evenly(batch_size: int, num_workers: int, *, pairs: bool) -> bool:
    """Whether the workers can take equal shares of a batch.

    Args:
        pairs: shares have to be even numbers, since images are mixed in pairs.
    """
    return batch_size % (num_workers * (2 if pairs else 1)) == 0


def check_workers(smallest: int, largest: int, *, batch_size: int, pairs: bool) -> None:
    """Checks that at least one number of workers in the range shares the batch evenly.

    Args:
        pairs: see `shares_evenly`.

    Raises:
        UserError: none does.
    """
    if smallest > largest:
        raise UserError(
            "the smallest number of workers is above the largest",
            where="min_workers",
            value=smallest,
            remedy=f"use at most num_workers ({largest}), or write a range such as num_workers: 1-4",
        )
    if any(shares_evenly(batch_size, n, pairs=pairs) for n in range(max(smallest, 1), max(largest, 1) + 1)):
        return
    if smallest != largest:
        raise UserError(
            f"no number of workers from {smallest} to {largest} shares a batch evenly"
            + (" in pairs, as mixup and cutmix need" if pairs else ""),
            where="batch_size",
            value=batch_size,
            remedy=f"use a multiple of {(2 if pairs else 1) * largest}, or widen num_workers",
        )
    workers = max(largest, 1)
    if batch_size % workers:
        raise UserError(
            f"{workers} workers cannot share a batch evenly",
            where="batch_size",
            value=batch_size,
            remedy=f"use a multiple of {workers}",
        )
    raise UserError(
        "mixup and cutmix pair the images of a batch, so each worker needs an even number",
        where="batch_size",
        value=batch_size,
        remedy=f"use a multiple of {2 * workers}",
    )


def workers_for(worker_range: tuple[int, int], *, batch_size: int, pairs: bool, available: float, unit: str) -> int:
    """Returns the largest number of workers in the range that the cluster holds and that shares the batch evenly.

    Args:
        worker_range: smallest and largest number of the recipe.
        pairs: see `shares_evenly`.
        available: cores or GPUs of the cluster; a worker takes one.
        unit: name of what is counted, for the message.

    Raises:
        UserError: the cluster is too small for every number in the range.
    """
    smallest, largest = worker_range
    even = [n for n in range(smallest, largest + 1) if shares_evenly(batch_size, n, pairs=pairs)]
    fitting = [n for n in even if n <= available]
    if fitting:
        return fitting[-1]
    asked = f"{smallest}-{largest}" if smallest != largest else largest
    also = f" and a batch of {batch_size} needs {even[0]} or more" if even and even[0] > smallest else ""
    raise UserError(
        f"the cluster has {available:g} {unit} for the training workers{also}",
        where="num_workers",
        value=asked,
        remedy="ask for fewer workers or a larger cluster",
    )


def check_dropout(kwargs: Mapping[str, Any], *, num_workers: int, micro_batch_size: int) -> None:
    """Checks that the network draws no random numbers that depend on the number of workers or of micro-batches.

    Args:
        kwargs: the network's further arguments, from the recipe or from the card of the first weights.
        num_workers: the largest number of workers.

    Raises:
        UserError: dropout, which draws in the order of the forwards. (Stochastic depth draws by image.)
    """
    if not micro_batch_size and num_workers <= 1:
        return
    for name, rate in kwargs.items():
        if name.endswith("drop_rate") and rate:
            cause = "micro-batches (micro_batch_size)" if micro_batch_size else "another number of workers"
            raise UserError(
                f"dropout draws other numbers with {cause}, so the result would not be the same",
                where=f"model.kwargs.{name}",
                value=rate,
                remedy="set it to 0 and use drop_path, or set micro_batch_size: 0 and num_workers: 0 or 1",
            )
