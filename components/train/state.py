"""Everything that changes during a training, in one place: exactly the content of a checkpoint.

It includes the numbers of threads and workers. Floating-point sums depend on them, on a CPU every matrix product does,
so an interrupted training goes on with the threads it had, however many cores it finds. All workers start from the
main worker's state, fresh or restored.
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
from components.train.distributed import Distributed
from components.train.metrics import Meter
from components.train.optimizer import Ema, build_optimizer, is_convolutional
from components.train.train_step import Precision


@dataclass
class Position:
    """Progress of a training: whole epochs, batches of the current epoch, and steps in total."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class MonitorState:
    """What went wrong so far and its consequences.

    Attributes:
        lr_scale: factor on the learning rate; smaller after each rollback.
        num_rollbacks: rollbacks so far.
        active_signatures: failure signatures found at the newest validation.
        events: one entry for each signature when it appeared: epoch, signature, sentence, action, lr_scale.
    """

    lr_scale: float = 1.0
    num_rollbacks: int = 0
    active_signatures: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ComputeSetup:
    """The threads and workers that computed the training so far.

    Attributes:
        num_threads: torch's threads of each worker; 0 on GPUs, where their number does not matter.
        num_workers: workers that share a batch.
    """

    num_threads: int = 0
    num_workers: int = 1

    @classmethod
    def current(cls, distributed: Distributed) -> ComputeSetup:
        """Returns the set-up of this process."""
        return cls(torch.get_num_threads() if distributed.device.type == "cpu" else 0, distributed.size)

    def restore(self, distributed: Distributed) -> str:
        """Sets this number of threads in the process; returns a warning, or an empty string.

        With another number of workers the bits differ anyway, so the process stays as it is.
        """
        now = ComputeSetup.current(distributed)
        before = ComputeSetup(self.num_threads, self.num_workers)
        if before == now:
            return ""
        if self.num_workers != now.num_workers or not self.num_threads or not now.num_threads:
            self.num_threads, self.num_workers = now.num_threads, now.num_workers
            return (
                f"this training had {before.num_workers} workers so far and goes on with {now.num_workers}, so its "
                "last bits differ from those of an uninterrupted run"
                if before.num_workers != now.num_workers
                else "this training moved between CPU and GPU, so its last bits differ from those of a run that stayed"
            )
        torch.set_num_threads(self.num_threads)
        cores = available_cores()
        if self.num_threads > cores:
            return f"goes on with {self.num_threads} threads, as before, on {cores} cores: exact, but slow"
        return ""


@dataclass
class TrainState:
    """Model, EMA, optimizer, scaler, position, the epoch's sums, history, monitoring, best validation, and set-up."""

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    precision: Precision
    meter: Meter
    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    monitor: MonitorState = field(default_factory=MonitorState)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    compute_setup: ComputeSetup = field(default_factory=ComputeSetup)

    @classmethod
    def start(cls, model: nn.Module, name: str, config: TrainConfig, distributed: Distributed) -> TrainState:
        """Returns the state of a training that has not begun, on the worker's device."""
        layout: Any = {"device": distributed.device, "memory_format": torch.channels_last}
        model = model.to(**layout).train()
        optimizer = build_optimizer(
            model,
            no_weight_decay="released_code" if config.match_released_code else config.no_weight_decay,
            convolutional=is_convolutional(name),
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        precision = choose_precision(config, distributed.device)
        meter = Meter(distributed.device, scaled=precision.scaler is not None)
        setup = ComputeSetup.current(distributed)
        return cls(model, Ema(model, config.ema_decay), optimizer, precision, meter, compute_setup=setup)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Returns every tensor of the state, by group and name; not copies."""
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
        """Returns a copy on the CPU that later steps do not change."""
        copies = {
            group: {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
            for group, tensors in self.tensors().items()
        }
        metadata = {
            **vars(self.position),
            "history": self.history,
            "monitor": vars(self.monitor),
            "best": self.best,
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler else {},
            "compute_setup": vars(self.compute_setup),
        }
        return Snapshot(copies, copy.deepcopy(metadata))

    def restore(self, snapshot: Snapshot) -> None:
        """Copies a snapshot's values into this state, bit for bit.

        Raises:
            KeyError, RuntimeError: it belongs to another network.
        """
        groups, metadata = snapshot.tensors, snapshot.metadata
        self.model.load_state_dict(dict(groups["model"]))
        self.ema.model.load_state_dict(dict(groups["ema"]))
        self._restore_optimizer(dict(groups["optimizer"]))
        self.meter.sums = groups["meter"]["sums"].to(self.meter.sums.device)
        self.best_weights = dict(groups.get("best", {}))
        self.position = Position(metadata["epoch"], metadata["batch"], metadata["step"])
        self.history, self.best = list(metadata["history"]), dict(metadata["best"])
        self.monitor = MonitorState(**copy.deepcopy(metadata["monitor"]))
        self.compute_setup = ComputeSetup(**metadata["compute_setup"])
        if self.precision.scaler and metadata["scaler"]:
            self.precision.scaler.load_state_dict(metadata["scaler"])

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        named = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            parameter = named[name]
            if value.shape == parameter.shape and key != "step":
                # In the memory layout of its weight (channels last), so that updates run as they did.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            elif key == "step":
                value = value.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def choose_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Returns the configuration's precision on this device; `auto` is bf16 on GPUs that have it, else float32."""
    wanted = config.precision
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "fp16":
        return Precision(device.type, torch.float16, torch.amp.GradScaler(device.type))
    return Precision(device.type, torch.bfloat16 if wanted == "bf16" else torch.float32)


def share_state(state: TrainState, distributed: Distributed, *, resumed: bool) -> None:
    """Copies the main worker's weights, EMA, optimizer and position to all workers. Every worker has to call it.

    Args:
        resumed: whether the main worker's state came from a checkpoint; ignored on the others.
    """
    if distributed.size == 1:
        return
    shared = distributed.broadcast_json(_metadata(state, resumed) if distributed.is_main else None)
    tensors = state.tensors()
    if shared["resumed"] and not distributed.is_main:
        tensors["optimizer"] = {
            name: torch.empty(shape, device=distributed.device) for name, shape in shared["optimizer"].items()
        }
        tensors["best"] = {}
    for group in ("model", "ema", "optimizer", "meter"):
        distributed.broadcast_tensors(tensors[group][name] for name in sorted(tensors[group]))
    if shared["resumed"] and not distributed.is_main:
        state.restore(Snapshot(tensors, shared["metadata"]))


def _metadata(state: TrainState, resumed: bool) -> dict[str, object]:
    """Returns what the other workers need before the tensors: shapes of the optimizer's, and the metadata."""
    optimizer = {name: list(t.shape) for name, t in state.tensors()["optimizer"].items()}
    metadata = dict(state.snapshot().metadata)
    return {"resumed": resumed, "optimizer": optimizer if resumed else {}, "metadata": metadata}
