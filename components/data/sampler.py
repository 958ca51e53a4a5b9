"""Which samples are held out, which are kept, and which make up batch k of epoch e: pure functions of a seed.

The order of an epoch sorts the samples by a hash of (seed, epoch, position), so that it depends on no generator's
version and can start at any batch. Global batch k is rows k*B .. (k+1)*B of that order for every number of ranks; rank
r of w takes rows r*B/w .. (r+1)*B/w of each global batch.
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
"""Makes the sampler's random numbers differ from those of crops and augmentations under the same seed."""


@dataclass(frozen=True)
class BatchSampler:
    """Chooses the batches of every epoch for one rank.

    Args:
        indices: the samples to choose from, each at most once.
        batch_size: samples in a global batch, over all ranks.
        seed: of the order.
        order: `random` gives every epoch another order, `fixed` gives all epochs the order of epoch 0, `sequential`
            keeps the order of `indices`.
        drop_last: leaves out the last global batch if it is not full.
        rank, world_size: this rank, and the number of ranks.

    Raises:
        UserError: `batch_size` is not a multiple of `world_size`.
    """

    indices: Indices
    batch_size: int
    seed: int = 0
    order: Literal["random", "fixed", "sequential"] = "random"
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size, (self.rank, self.world_size)
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise UserError(
                f"the global batch does not divide over {self.world_size} workers",
                where="batch_size",
                value=self.batch_size,
                remedy=f"use a multiple of {self.world_size}, or another number of workers",
            )

    @property
    def num_batches(self) -> int:
        """Number of global batches in an epoch; the same for every rank."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def epoch(self, epoch: int) -> Indices:
        """Returns all samples in the order of this epoch, over all ranks."""
        if self.order == "sequential":
            return self.indices
        shuffle = 0 if self.order == "fixed" else epoch
        keys = draws(self.seed ^ _PURPOSE, np.arange(len(self.indices), dtype=np.uint64), shuffle)
        return self.indices[np.argsort(keys, kind="stable")]

    def batches(self, epoch: int, start_batch: int = 0) -> list[Indices]:
        """Returns this rank's part of the batches `start_batch`, `start_batch` + 1, ... of an epoch.

        Each part has batch_size / world_size samples. Parts of a last batch that is not full may be smaller, and empty
        for some ranks.
        """
        whole = self.epoch(epoch)
        return [self._part(whole, k) for k in range(start_batch, self.num_batches)]

    def _part(self, whole: Indices, k: int) -> Indices:
        batch = whole[k * self.batch_size : (k + 1) * self.batch_size]
        first, last = (len(batch) * r // self.world_size for r in (self.rank, self.rank + 1))
        return batch[first:last]


def checked_indices(indices: Sequence[int] | Indices | None, n: int) -> Indices:
    """Returns `indices` as an array after checking them against a set of n samples; all samples if None.

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
        raise UserError("a sample is listed twice", where="indices", remedy="list every sample once")
    return chosen


def held_out_positions(labels: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Chooses about `fraction` of each class; at least one image, and never all of a class of two or more."""
    chosen: set[int] = set()
    for members in _shuffled_classes(labels, seed):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(members[:count])
    return chosen


def limited_positions(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Chooses at most `limit` images, spread as evenly over the classes as they allow; returns sorted positions."""
    queues = _shuffled_classes(labels, seed)
    ranked = [(rank, label, position) for label, queue in enumerate(queues) for rank, position in enumerate(queue)]
    return sorted(position for _, _, position in sorted(ranked)[:limit])


def _shuffled_classes(labels: Sequence[int], seed: int) -> list[list[int]]:
    classes = np.asarray(labels)
    order = np.argsort(draws(seed, np.arange(len(classes), dtype=np.uint64), 0), kind="stable")
    return [order[classes[order] == label].tolist() for label in np.unique(classes)]
