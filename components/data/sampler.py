"""Which samples make up batch k of epoch e: pure functions, the same for every number of ranks.

The order of an epoch sorts the samples by a hash of (seed, epoch, position), so that it depends on no generator's
version and can start at any batch. Global batch k is rows k*B .. (k+1)*B of it, whatever the number of ranks; rank r of
w takes rows r*B/w .. (r+1)*B/w of each global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from components.data.randomness import draws
from components.errors import UserError

Indices = npt.NDArray[np.int64]

_PURPOSE = 0x6F72646572
"""Keeps the order's random numbers apart from those of crops and augmentations under the same seed."""


@dataclass(frozen=True)
class BatchOrder:
    """The batches of every epoch for one rank.

    Args:
        indices: the samples that take part (each at most once).
        batch_size: samples in a global batch, over all ranks.
        order: `random` gives every epoch another order, `fixed` gives all of them that of epoch 0, `sequential` keeps
            `indices` as they are.
        drop_last: leave out the last global batch where it is not full.

    Raises:
        UserError: the ranks do not divide the batch.
    """

    indices: Indices
    batch_size: int
    seed: int = 0
    order: Literal["random", "fixed", "sequential"] = "random"
    drop_last: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world, (self.rank, self.world)
        if self.batch_size < 1 or self.batch_size % self.world:
            raise UserError(
                f"the global batch does not divide over {self.world} workers",
                where="batch_size",
                value=self.batch_size,
                remedy=f"use a multiple of {self.world}, or another number of workers",
            )

    @property
    def num_batches(self) -> int:
        """Global batches in an epoch; the same for every rank."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def epoch(self, epoch: int) -> Indices:
        """All samples in the order of this epoch, over all ranks."""
        if self.order == "sequential":
            return self.indices
        shuffle = 0 if self.order == "fixed" else epoch
        keys = draws(self.seed ^ _PURPOSE, np.arange(len(self.indices), dtype=np.uint64), shuffle)
        return self.indices[np.argsort(keys, kind="stable")]

    def batches(self, epoch: int, start_batch: int = 0) -> list[Indices]:
        """This rank's part of the batches `start_batch`, `start_batch` + 1, ... of an epoch.

        The parts have batch_size / world samples each; those of a last batch that is not full may be smaller, and
        empty for some ranks.
        """
        whole = self.epoch(epoch)
        return [self._part(whole, k) for k in range(start_batch, self.num_batches)]

    def _part(self, whole: Indices, k: int) -> Indices:
        batch = whole[k * self.batch_size : (k + 1) * self.batch_size]
        first, last = (len(batch) * r // self.world for r in (self.rank, self.rank + 1))
        return batch[first:last]


def all_or_given(indices: Sequence[int] | Indices | None, n: int) -> Indices:
    """`indices` checked against a set of n samples, or all of them.

    Raises:
        UserError: an index outside the set, or one that appears twice.
    """
    if indices is None:
        return np.arange(n, dtype=np.int64)
    chosen = np.asarray(indices, np.int64).reshape(-1)
    outside = chosen[(chosen < 0) | (chosen >= n)]
    if len(outside):
        raise UserError(
            "no such sample", where="indices", value=int(outside[0]), remedy=f"use indices from 0 to {n - 1}"
        )
    if len(np.unique(chosen)) != len(chosen):
        raise UserError("a sample is named twice", where="indices", remedy="name every sample once")
    return chosen
