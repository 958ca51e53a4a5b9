"""The workers of one training and the data they exchange. With one worker nothing is exchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.errors import UserError


@dataclass(frozen=True)
class Distributed:
    """One worker's view of the training: `rank` of `size` workers, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the main worker, the one that writes: rank 0."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Returns this worker's rows of a global batch of `rows` images."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over workers, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter], figures: Tensor) -> Tensor:
        """Sums the gradients over workers, in place, and returns the sum of `figures` (n,), in one exchange."""
        if self.size == 1:
            return figures
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), figures.to(gradients[0].dtype)])
        dist.all_reduce(flat)
        *totals, figures = flat.split([*(g.numel() for g in gradients), len(figures)])
        for gradient, total in zip(gradients, totals):
            gradient.copy_(total.view(gradient.shape))
        return figures

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites every tensor with the main worker's."""
        if self.size == 1:
            return
        for tensor in tensors:
            # The exchange needs dense rows; a channels-last weight is sent as a plain copy.
            plain = tensor.detach().contiguous()
            dist.broadcast(plain, src=0)
            tensor.detach().copy_(plain)

    def broadcast_json(self, value: Any) -> Any:
        """Returns the main worker's JSON value on every worker."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(text)], device=self.device)
        dist.broadcast(length, src=0)
        box = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            box.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(box, src=0)
        return json.loads(bytes(box.cpu().tolist()))


def device_for(wanted: str, local_rank: int) -> torch.device:
    """Returns the device of one worker.

    Args:
        wanted: auto, cpu or cuda.
        local_rank: the worker's number among those of its machine; each takes a GPU of its own.

    Raises:
        UserError: a GPU is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device", where="device", value=wanted, remedy="use auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)
