"""Everything that changes while training, in one place: what a checkpoint has to hold and nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from components.train.checkpoint import Snapshot
from components.train.computing import Computing
from components.train.config import TrainConfig
from components.train.ema import Ema
from components.train.meter import Meter
from components.train.optim import build_optimizer, is_convolutional
from components.train.step import Precision
from components.train.world import World


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
