"""Does units of a workload: holds the model and attacks one block after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from components.evaluate import unit_file, workload
from components.evaluate.autoattack import attack_block
from components.evaluate.observed import Progress
from components.models.resolution import set_resolution
from components.models.weights import load_model


class Bench:
    """One model on one device.

    Args:
        folder: the workload's.
        model_folder: as `save_model` wrote it.
        device: "cpu" or "cuda".
    """

    def __init__(self, folder: Path, model_folder: Path, device: str) -> None:
        self.folder, self.device = folder, torch.device(device)
        self.workload = workload.read(folder)
        model, _ = load_model(model_folder)
        # Channels-last saves ConvNeXt a copy before and after every block: a third of a forward on a CPU.
        layout: Any = {"device": self.device, "memory_format": torch.channels_last}
        self.model: nn.Module = model.float().to(**layout)

    def attack(self, number: int, progress: Progress | None = None) -> Path:
        """Does unit `number` unless it is done; returns its file.

        Raises:
            UserError: as `attack_block` does.
        """
        path, digest = unit_file.path_of(self.folder, number), self.workload.digest
        if unit_file.read(path, digest) is not None:
            return path
        unit = self.workload.units[number]
        pixels, labels = workload.load_block(self.folder, unit)
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
        return unit_file.write(path, found, keep=self.workload.keep, digest=digest)


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
