"""Every worker starts from the leading worker's state, fresh or resumed."""

from __future__ import annotations

import torch

from components.train.checkpoint import Snapshot
from components.train.state import TrainState
from components.train.world import World


def share_state(state: TrainState, world: World, *, resumed: bool) -> None:
    """Copies rank 0's weights, average, optimizer and position to all workers. Every worker has to call it.

    Args:
        resumed: on rank 0, whether its state came from a checkpoint.
    """
    if world.size == 1:
        return
    facts = world.facts_from_leader(_facts(state, resumed) if world.leads else None)
    tensors = state.tensors()
    if facts["resumed"] and not world.leads:
        tensors["optimizer"] = _empty_optimizer(state, facts["optimizer"], world)
        tensors["best"] = {}
    for group in ("model", "ema", "optimizer", "meter"):
        world.from_leader(tensors[group][name] for name in sorted(tensors[group]))
    if facts["resumed"] and not world.leads:
        state.restore(Snapshot(tensors, facts["facts"]))


def _facts(state: TrainState, resumed: bool) -> dict[str, object]:
    optimizer = {name: list(t.shape) for name, t in state.tensors()["optimizer"].items()}
    return {"resumed": resumed, "optimizer": optimizer if resumed else {}, "facts": dict(state.snapshot().facts)}


def _empty_optimizer(state: TrainState, shapes: dict[str, list[int]], world: World) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device=world.device) for name, shape in shapes.items()}
