"""Which images of a set are held out or kept: seeded, even over the classes, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.data.randomness import draws


def held_out(labels: Sequence[int], fraction: float, seed: int) -> set[int]:
    """The positions of about `fraction` of each class; at least one and never all of a class of two or more."""
    chosen: set[int] = set()
    for members in _shuffled_classes(labels, seed):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(members[:count])
    return chosen


def limited(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Sorted positions of at most `limit` images, spread as evenly over the classes as they allow."""
    queues = _shuffled_classes(labels, seed)
    ranked = [(rank, label, position) for label, queue in enumerate(queues) for rank, position in enumerate(queue)]
    return sorted(position for _, _, position in sorted(ranked)[:limit])


def _shuffled_classes(labels: Sequence[int], seed: int) -> list[list[int]]:
    classes = np.asarray(labels)
    order = np.argsort(draws(seed, np.arange(len(classes), dtype=np.uint64), 0), kind="stable")
    return [order[classes[order] == label].tolist() for label in np.unique(classes)]
