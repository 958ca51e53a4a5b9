"""Does single units of a workload: holds the model and attacks one block after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from components.evaluate import work_units
from components.evaluate.attack import attack_block
from components.evaluate.attack_monitor import Progress
from components.models.resolution import set_resolution
from components.models.weights import load_model


class UnitWorker:
    """Attacks one model on one device.

    Args:
        folder: of the workload.
        model_folder: as `save_model` wrote it.
        device: "cpu" or "cuda".
    """

    def __init__(self, folder: Path, model_folder: Path, device: str) -> None:
        self.folder, self.device = folder, torch.device(device)
        self.workload = work_units.read(folder)
        model, _ = load_model(model_folder)
        # Channels-last saves ConvNeXt a copy before and after every block: a third of a forward on a CPU.
        layout: Any = {"device": self.device, "memory_format": torch.channels_last}
        self.model: nn.Module = model.float().to(**layout)

    def attack(self, number: int, progress: Progress | None = None) -> Path:
        """Does unit `number` unless it is finished already; returns its file.

        Raises:
            UserError: as `attack_block` does.
        """
        path, digest = work_units.unit_path(self.folder, number), self.workload.digest
        if work_units.read_unit(path, digest) is not None:
            return path
        unit = self.workload.units[number]
        pixels, labels = work_units.load_block(self.folder, unit)
        set_resolution(self.model, unit.resolution)
        with one_thread(self.device):
            found = attack_block(
                self.model,
                as_images(pixels),
                torch.from_numpy(labels.astype(np.int64)),
                self.workload.threats[unit.threat],
                num_classes=self.workload.num_classes,
                seed=self.workload.seed,
                progress=progress,
            )
        return work_units.write_unit(path, found, keep=self.workload.keep, digest=digest)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """Pixels (B, H, W, 3) uint8 -> images (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(255).contiguous()


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread on a CPU: the cores are used by other units, and sums keep their order whatever the machine has."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
