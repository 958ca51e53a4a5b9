"""How sure a share of n images is, and what a difference of two on the same images shows. Standard library only."""

from __future__ import annotations

from components.statistics.paired import PairedDifference, mcnemar, paired_difference
from components.statistics.power import images_needed, smallest_difference
from components.statistics.shares import INTERVAL_NAME, Z95, wilson

__all__ = [
    "INTERVAL_NAME",
    "Z95",
    "PairedDifference",
    "images_needed",
    "mcnemar",
    "paired_difference",
    "smallest_difference",
    "wilson",
]
