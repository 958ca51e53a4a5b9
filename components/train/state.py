"""Everything that changes while training, in one place: what a checkpoint has to hold and nothing else.

What the last bits of a training depend on besides its numbers: threads and workers, kept over interruptions.

Sums over threads depend on their number, and on a CPU so does every product. A training goes on with the threads
that it had, however many cores the process that continues it was given.

Every worker starts from the leading worker's state, fresh or resumed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from components.process import available_cores
from components.train.checkpoint import Snapshot
from components.train.config import TrainConfig
from components.train.distributed import World
from components.train.ema import Ema
from components.train.metrics import Meter
from components.train.optimizer import build_optimizer, is_convolutional
from components.train.train_step import Precision

# MERGED


@dataclass
class Computing:
    """Who computed so far.

    Attributes:
        threads: torch's threads of each worker; 0 on GPUs, where they do not matter.
        workers: how many share a batch.
    """

    threads: int = 0
    workers: int = 1

    @classmethod
    def here(cls, world: World) -> Computing:
        """As this process is set up."""
        return cls(torch.get_num_threads() if world.device.type == "cpu" else 0, world.size)

    def take_over(self, world: World) -> str:
        """Goes on with these threads; returns what people should know, an empty string where there is nothing.

        With another number of workers the bits differ anyway, so the process stays as it is.
        """
        now = Computing.here(world)
        before = (self.threads, self.workers)
        if before == (now.threads, now.workers):
            return ""
        if self.workers != now.workers or not self.threads or not now.threads:
            self.threads, self.workers = now.threads, now.workers
            return (
                f"this training had {before[1]} workers so far and goes on with {now.workers}, so that its last bits "
                "are not those of a run that was left alone"
                if before[1] != now.workers
                else "this training moved between CPU and GPU, so its last bits are not those of a run that stayed"
            )
        torch.set_num_threads(self.threads)
        if self.threads > available_cores():
            return f"goes on with {self.threads} threads, as before, on {available_cores()} cores: exact, but slow"
        return ""


# MERGED


@dataclass
class Position:
    """How far training has come: whole epochs, batches of the present epoch, and steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class HealthState:
    """What went wrong so far and what followed.

    Attributes:
        lr_scale: factor on the learning rate; smaller each time the training went back.
        backs: how often it went back.
        present: signatures that the newest probe showed.
        events: one entry for each signature when it appeared: epoch, signature, sentence, action, lr_scale.
    """

    lr_scale: float = 1.0
    backs: int = 0
    present: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class TrainState:
    """Model, average, optimizer, scaler, position, the epoch's sums, history, health, the best probe so far, and the
    threads and workers that computed it."""

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    precision: Precision
    meter: Meter
    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    health: HealthState = field(default_factory=HealthState)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    computing: Computing = field(default_factory=Computing)

    @classmethod
    def start(cls, model: nn.Module, name: str, config: TrainConfig, world: World) -> TrainState:
        """A training that has not begun, on the worker's device."""
        layout: Any = {"device": world.device, "memory_format": torch.channels_last}
        model = model.to(**layout).train()
        optimizer = build_optimizer(
            model,
            groups="faithful" if config.faithful else config.groups,
            convolutional=is_convolutional(name),
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        precision = choose_precision(config, world.device)
        meter = Meter(world.device, scaled=precision.scaler is not None)
        return cls(model, Ema(model, config.ema_decay), optimizer, precision, meter, computing=Computing.here(world))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the state, by group and name; the live ones."""
        groups = {
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.model.state_dict()),
            "optimizer": self._optimizer_tensors(),
            "meter": {"sums": self.meter.sums},
        }
        return {**groups, "best": self.best_weights} if self.best_weights else groups

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value
        return found

    def snapshot(self) -> Snapshot:
        """A copy on the CPU that later steps do not touch."""
        copies = {
            group: {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
            for group, tensors in self.tensors().items()
        }
        scaler = self.precision.scaler.state_dict() if self.precision.scaler else {}
        facts = {
            **vars(self.position),
            "history": self.history,
            "health": vars(self.health),
            "best": self.best,
            "scaler": scaler,
            "computing": vars(self.computing),
        }
        return Snapshot(copies, copy.deepcopy(facts))

    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot's values into this state, bit for bit.

        Raises:
            KeyError, RuntimeError: it belongs to another network.
        """
        groups, facts = snapshot.tensors, snapshot.facts
        self.model.load_state_dict(dict(groups["model"]))
        self.ema.model.load_state_dict(dict(groups["ema"]))
        self._restore_optimizer(dict(groups["optimizer"]))
        self.meter.sums = groups["meter"]["sums"].to(self.meter.sums.device)
        self.best_weights = dict(groups.get("best", {}))
        self.position = Position(facts["epoch"], facts["batch"], facts["step"])
        self.history, self.best = list(facts["history"]), dict(facts["best"])
        self.health = HealthState(**copy.deepcopy(facts["health"]))
        self.computing = Computing(**facts["computing"])
        if self.precision.scaler and facts["scaler"]:
            self.precision.scaler.load_state_dict(facts["scaler"])

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        named = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            parameter = named[name]
            if value.shape == parameter.shape and key != "step":
                # Like its weight in memory too (channels last), so that updates run as they did.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            elif key == "step":
                value = value.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def choose_precision(config: TrainConfig, device: torch.device) -> Precision:
    """The configuration's precision on this device; `auto` is bf16 on GPUs that have it, else float32."""
    wanted = config.precision
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "fp16":
        return Precision(device.type, torch.float16, torch.amp.GradScaler(device.type))
    return Precision(device.type, torch.bfloat16 if wanted == "bf16" else torch.float32)


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
