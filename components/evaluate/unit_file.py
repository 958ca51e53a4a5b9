"""A finished unit on disk: one `.npz`, written whole or not at all, and tied to its workload by a digest."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluate.autoattack import BlockVerdict


@dataclass(frozen=True)
class UnitResult:
    """What one unit found, for B images; see `BlockVerdict`.

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


def path_of(folder: Path, number: int) -> Path:
    """Where unit `number` of a workload's folder lies."""
    return folder / f"unit-{number:05d}.npz"


def write(path: Path, found: BlockVerdict, *, keep: int, digest: str) -> Path:
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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file,
            clean_prediction=found.clean_prediction.numpy(),
            prediction=found.prediction.numpy(),
            distance=found.distance.double().numpy(),
            shown=np.array(shown, dtype=np.int64),
            adversarial=found.adversarial[shown].float().contiguous().numpy(),
            facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        )
    os.replace(part, path)
    return path


def read(path: Path, digest: str) -> UnitResult | None:
    """A unit of the workload with this digest; None where it is missing, damaged, or of another workload."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        found = UnitResult(facts=facts, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found if facts.get("workload") == digest else None
