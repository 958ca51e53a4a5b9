"""The work of one evaluation, cut into units that do not depend on which process does them, and their files.

A unit is one block of images under one threat at one resolution. Blocks follow from the number of images and the
batch size alone, and a unit's random draws from its block and the seed alone. So the verdicts are the same for any
number of processes, and a finished unit need not be repeated after a crash: it is one `.npz`, written completely or not
at all, and tied to its workload by a digest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from components.evaluate.attack import BlockVerdict
from components.evaluate.config import Threat
from components.files import write_atomically
from components.threats import ATTACKS, NORMS

FILE = "workload.json"


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
    """Describes all work units. With the image and label files and the model folder it is all that a process needs.

    Attributes:
        keep: number of adversarial images that each unit keeps, for the gallery.
        model_sha256: of the weights; with `data_sha256` it ties finished units to the model and the images.
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
        """sha256 over all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def by_cost(self) -> list[int]:
        """Numbers of the units, the most expensive first, so that no process is left with a long one at the end."""

        def cost(number: int) -> float:
            unit, threat = self.units[number], self.threats[self.units[number].threat]
            per_image = ATTACKS[threat.attack].forwards_per_image * NORMS[threat.norm].relative_cost
            return per_image * unit.size * unit.resolution**2

        return sorted(range(len(self.units)), key=lambda number: (-cost(number), number))


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of the fewest blocks of at most `size` images that cover 0..n; sizes differ by at most 1."""
    count = -(-n // size)
    edges = [n * k // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def cut(threats: Sequence[Threat], resolutions: Sequence[int], n: int, size: int) -> tuple[Unit, ...]:
    """All units, ordered by resolution, threat and block. A threat takes the first of the n images."""
    return tuple(
        Unit(threat=number, resolution=resolution, start=start, stop=stop)
        for resolution in resolutions
        for number, threat in enumerate(threats)
        for start, stop in blocks(min(threat.num_images or n, n), size)
    )


def write(
    folder: Path, workload: Workload, images: dict[int, npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]
) -> None:
    """Writes a workload's folder: images (n, R, R, 3) uint8 by resolution, labels (n,) int64, and the workload last."""
    folder.mkdir(parents=True, exist_ok=True)
    for resolution, pixels in images.items():
        np.save(folder / f"images-{resolution}.npy", pixels, allow_pickle=False)
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    (folder / FILE).write_text(workload.model_dump_json(), encoding="utf-8")


def read(folder: Path) -> Workload:
    """Reads the workload that `write` wrote."""
    return Workload.model_validate_json((folder / FILE).read_bytes())


def load_block(folder: Path, unit: Unit) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (B, R, R, 3) uint8 and labels (B,) of one unit."""
    images = np.load(folder / f"images-{unit.resolution}.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    return np.array(images[unit.start : unit.stop]), labels[unit.start : unit.stop]


@dataclass(frozen=True)
class UnitResult:
    """The result of one unit of B images; see `BlockVerdict`.

    Attributes:
        shown: rows of the block whose adversarial images were kept.
        adversarial: those images, (K, C, H, W) float32.
        facts: verdict words, counts, parts, seconds and warnings, JSON-able.
    """

    clean_prediction: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    shown: npt.NDArray[np.int64]
    adversarial: npt.NDArray[np.float32]
    facts: dict[str, Any]


def unit_path(folder: Path, number: int) -> Path:
    """The file of unit `number` in a workload's folder."""
    return folder / f"unit-{number:05d}.npz"


def write_unit(path: Path, found: BlockVerdict, *, keep: int, digest: str) -> Path:
    """Writes a unit, keeping the first `keep` adversarial images."""
    shown = [row for row, moved in enumerate((found.distance > 0).tolist()) if moved][:keep]
    facts = {
        "workload": digest,
        "verdict": found.verdict,
        "unverified": found.unverified,
        "narrow": found.narrow,
        "seconds": found.seconds,
        "parts": found.parts,
        "warnings": found.warnings,
    }
    arrays = {
        "clean_prediction": found.clean_prediction.numpy(),
        "prediction": found.prediction.numpy(),
        "distance": found.distance.double().numpy(),
        "shown": np.array(shown, dtype=np.int64),
        "adversarial": found.adversarial[shown].float().contiguous().numpy(),
        "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
    }

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    return write_atomically(path, write, fsync=False)


def read_unit(path: Path, digest: str) -> UnitResult | None:
    """Reads a unit of the workload with this digest; None if it is missing, damaged, or of another workload."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        found = UnitResult(facts=facts, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found if facts.get("workload") == digest else None
