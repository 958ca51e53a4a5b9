"""Random numbers of training as pure functions of the place where they are used, so that a restart draws the same ones.

No generator's state is carried from step to step; a checkpoint therefore has none to store.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(*parts: object) -> int:
    """Returns a seed (63 bits) for values that print the same everywhere."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seeds torch's own generators, which dropout draws from, for one step of one worker.

    Dropout is therefore refused if the number of workers may change its draws; stochastic depth draws by row.
    """
    torch.manual_seed(derive("step", seed, epoch, batch, rank))


def row_noise(like: Tensor, first_row: int, *, seed: int, epoch: int, batch: int, normal: bool) -> Tensor:
    """Returns noise for the start points of attacks, row by row: the same whichever worker has the row.

    Args:
        like: (B, C, H, W); gives shape, dtype and device.
        first_row: place of this worker's first image in the global batch.
        normal: standard normal; otherwise uniform in [-1, 1].
    """
    noise = torch.empty_like(like)
    generator = torch.Generator(device=like.device)
    for row in range(len(like)):
        generator.manual_seed(derive("noise", seed, epoch, batch, first_row + row))
        if normal:
            noise[row].normal_(generator=generator)
        else:
            noise[row].uniform_(-1, 1, generator=generator)
    return noise
