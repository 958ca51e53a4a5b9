"""A real training stage in a temporary home, with encoded images, an MLflow run and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from components.data import stage as encode
from components.process import stage_cores
from components.store.execute import StageJob, execute
from components.store.objects import ObjectStore
from components.store.settings import StorageSettings
from components.store.spec import ParentRef, StageSpec
from components.store.tracking import Tracking
from components.train.checkpoint_manager import CheckpointManager
from components.train.config import CONFIGS, TrainConfig
from components.train.distributed import Distributed
from components.train.images import TrainImages
from components.train.initial_model import initial_model
from components.train.loop import Training
from components.train.metrics import MetricsReporter
from components.train.monitor import TrainingMonitor
from components.train.state import TrainState

KIND, SEED = "adversarial", 0
_PER_EPOCH = 5


class Home:
    """A home folder with encoded images and training stages on them."""

    def __init__(self, folder: Path, *, network: str, batch: int) -> None:
        self.storage = StorageSettings.from_environment({}, home=folder)
        self.tracking = Tracking(self.storage)
        self.network, self.batch, self._jobs = network, batch, 0
        self.distributed = Distributed(device=torch.device("cpu"))
        torch.set_num_threads(stage_cores())
        self._data = self._encoded(_PER_EPOCH * batch)

    def _encoded(self, images: int) -> ParentRef:
        config = {
            "source": "shapes",
            "max_short_side": 32,
            "mode": "raw",
            "max_train_images": images,
            "max_val_images": 16,
        }
        spec = StageSpec(name="data", kind="encode", config=config, seed=SEED, fingerprint="d" * 64)
        spec = spec.model_copy(update={"run_id": self.tracking.begin(spec)})
        execute(spec, self.storage, encode.run)
        return ParentRef(name="data", kind="encode", run_id=spec.run_id, fingerprint=spec.fingerprint)

    def job(self, **change: Any) -> StageJob:
        """Returns a new adversarial training stage; `change` alters its configuration."""
        settings = {
            "data": "data",
            "init": "random",
            "model": {"name": self.network, "stem": "conv"},
            "resolution": 32,
            "batch_size": self.batch,
            "warmup_epochs": 0,
            "scale": (1.0, 1.0),
            "attack": {"norm": "Linf", "eps": 4 / 255, "steps": 2},
            "validation": {"fraction": 0.0},
            "device": "cpu",
            "loader": "native",
            **change,
        }
        config = CONFIGS[KIND].model_validate(settings).model_dump(mode="json")
        self._jobs += 1
        spec = StageSpec(
            name=KIND,
            kind=KIND,
            config=config,
            seed=SEED,
            fingerprint=f"{self._jobs:064x}",
            parents={"data": self._data},
        )
        spec = spec.model_copy(update={"run_id": self.tracking.begin(spec)})
        inputs = {"data": self.tracking.finished(self._data, "data")}
        objects = ObjectStore(self.storage.objects_uri, self.storage.cache)
        return StageJob(spec, inputs, self.tracking.attach(spec), objects)

    def training(self, job: StageJob) -> Training:
        """Returns a stage's training, built as in `components.train.stage`."""
        config: TrainConfig = CONFIGS[KIND].model_validate(job.spec.config)
        images = TrainImages(job, config, self.distributed, SEED)
        first = initial_model(job, config, images.manifest, SEED)
        state = TrainState.start(first.model, first.card.name, config, self.distributed)
        monitor = TrainingMonitor(
            config.monitor, state, self.distributed, images.num_classes, images.counts["held_out"]
        )
        store = CheckpointManager(
            job.run.workdir / "checkpoints", job.spec.fingerprint, upload=job.run.save, fetch=job.run.fetch
        )
        reporter = MetricsReporter(config, job.run, state.model, self.distributed.device)
        return Training(config, SEED, self.distributed, images, state, monitor, store, reporter)
