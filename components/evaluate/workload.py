"""The work of one evaluation, cut into units that do not depend on who does them.

A unit is one block of images under one threat at one resolution. Blocks follow from the number of images and the
batch size alone, and a unit's random draws from its block and the seed alone; so the verdicts are the same for any
number of processes, and a unit that is done need not be done again after a crash.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from components.evaluate.config import Threat

FILE = "workload.json"
_WEIGHT = {"autoattack": 10_000, "apgd-ce+apgd-t": 2_200, "apgd-ce": 220}
_NORM_WEIGHT = {"Linf": 1.0, "L2": 1.0, "L1": 1.5}


class Unit(BaseModel):
    """Images `start` to `stop` (exclusive) under threat number `threat` at `resolution` px."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    threat: int
    resolution: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Images in it."""
        return self.stop - self.start


class Workload(BaseModel):
    """Everything a process needs to do any unit, but the files beside it (images and labels) and the model's folder.

    Attributes:
        keep: adversarial images that each unit keeps, for the gallery.
        model_sha256: of the weights; with `data_sha256` it ties finished units to what they were made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    threats: tuple[Threat, ...]
    units: tuple[Unit, ...]
    num_classes: int
    seed: int
    keep: int
    model_sha256: str
    data_sha256: str

    @property
    def digest(self) -> str:
        """sha256 over all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def by_weight(self) -> list[int]:
        """Numbers of the units, the most expensive first, so that no process is left with a long one at the end."""

        def weight(number: int) -> float:
            unit, threat = self.units[number], self.threats[self.units[number].threat]
            return _WEIGHT[threat.attack] * _NORM_WEIGHT[threat.norm] * unit.size * unit.resolution**2

        return sorted(range(len(self.units)), key=lambda number: (-weight(number), number))


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """0..n cut into the fewest blocks of at most `size`, as even as can be."""
    count = -(-n // size)
    edges = [n * k // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def cut(threats: Sequence[Threat], resolutions: Sequence[int], n: int, size: int) -> tuple[Unit, ...]:
    """All units, ordered by resolution, threat and block. A threat with its own n takes the first of the n images."""
    return tuple(
        Unit(threat=number, resolution=resolution, start=start, stop=stop)
        for resolution in resolutions
        for number, threat in enumerate(threats)
        for start, stop in blocks(min(threat.n or n, n), size)
    )


def write(
    folder: Path, workload: Workload, images: dict[int, npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]
) -> None:
    """Lays out a workload's folder: images (n, R, R, 3) uint8 by resolution, labels (n,) int64, and the plan last."""
    folder.mkdir(parents=True, exist_ok=True)
    for resolution, pixels in images.items():
        np.save(folder / f"images-{resolution}.npy", pixels, allow_pickle=False)
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    (folder / FILE).write_text(workload.model_dump_json(), encoding="utf-8")


def read(folder: Path) -> Workload:
    """The workload that `write` left."""
    return Workload.model_validate_json((folder / FILE).read_bytes())


def load_block(folder: Path, unit: Unit) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (B, R, R, 3) uint8 and labels (B,) of one unit."""
    images = np.load(folder / f"images-{unit.resolution}.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    return np.array(images[unit.start : unit.stop]), labels[unit.start : unit.stop]
