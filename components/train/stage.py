"""The five training stages: builds the first network, trains it, and saves the EMA weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from components.errors import UserError
from components.files import write_json
from components.stage_records import HISTORY
from components.train.config import CONFIGS, TrainConfig
from components.train.validation import describe_choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from components.models import ModelCard
    from components.store.execute import StageJob
    from components.train.checkpoint_manager import CheckpointManager, CheckpointThreads
    from components.train.distributed import Distributed
    from components.train.loop import Training
    from components.train.metrics import MetricsReporter
    from components.train.state import TrainState

MODEL = "model"


def run(job: StageJob) -> dict[str, Any]:
    """Trains one stage.

    Artifacts: `model/` (the EMA weights, the last or those of the best validation), `history.json` (a list, one entry
    per epoch), and `checkpoints/` for resuming.

    Returns:
        model, stem, epochs, steps, clean_accuracy, robust_accuracy (held-out training images; null if not measured),
        held_out (their number), the choice of the weights (`weights`), and failures and rollbacks (`monitor`).

    Raises:
        UserError: the configuration does not fit the data or the weights, or training failed in a known way.
    """
    from components.train.ray_trainer import fit

    config = parse(job)
    result = fit(work, job, config)
    if config.num_workers:
        _fetch_from_worker(job)
    return result


def _fetch_from_worker(job: StageJob) -> None:
    """Saves the main worker's artifacts again through this process's run, whose manifest lists its own saves only."""
    for artifact in (MODEL, HISTORY):
        found = job.run.fetch(artifact, job.run.workdir / "from-worker" / artifact)
        assert found is not None, f"the main worker saved no {artifact}"
        job.run.save(found, artifact)


def parse(job: StageJob) -> TrainConfig:
    """Returns the stage's configuration."""
    return CONFIGS[job.spec.kind].model_validate(job.spec.config)


def work(job: StageJob, distributed: Distributed, stop_requested: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains on one worker. Only the main worker writes; the result is the same on all of them.

    Args:
        stop_requested: asked for requests to end that do not arrive as signals.
    """
    from components.process import keep_freed_memory
    from components.train.checkpoint_manager import CheckpointThreads
    from components.train.images import TrainImages
    from components.train.initial_model import initial_model
    from components.train.loop import Training
    from components.train.monitor import TrainingMonitor
    from components.train.state import TrainState

    keep_freed_memory()
    config = parse(job)
    seed = job.spec.seed + config.seed_offset
    images = TrainImages(job, config, distributed, seed)
    first = initial_model(job, config, images.manifest, seed)
    state = TrainState.start(first.model, first.card.name, config, distributed)
    threads = CheckpointThreads() if distributed.is_main else None
    checkpoints = _open_checkpoints(job, "checkpoints", threads) if threads else None
    good_states = _open_checkpoints(job, "good", threads) if threads and config.monitor.can_roll_back else None
    reporter = _open_reporter(job, config, state, distributed) if distributed.is_main else None
    try:
        _resume(job, state, checkpoints, distributed)
        if distributed.is_main:
            found = {"actual_workers": distributed.size, "jpeg_decoder": images.train.jpeg_decoder}
            job.run.log_params({**_params(config, images.counts), **found})
        classes, held_out = images.num_classes, images.counts["held_out"]
        monitor = TrainingMonitor(config.monitor, state, distributed, classes, held_out, good_states, warn=job.run.warn)
        training = Training(
            config,
            seed,
            distributed,
            images,
            state,
            monitor,
            checkpoints,
            reporter,
            stop_requested=stop_requested,
        )
        training.run()
        return _finish(job, training, first.card)
    finally:
        for opened in (threads, reporter):
            if opened is not None:
                opened.close()


def _open_checkpoints(job: StageJob, name: str, threads: CheckpointThreads) -> CheckpointManager:
    """Opens the checkpoints for resuming ("checkpoints"), or the good states for rollbacks ("good")."""
    from components.train.checkpoint_manager import CheckpointManager

    return CheckpointManager(
        job.run.workdir / name,
        job.spec.fingerprint,
        upload=job.run.save,
        fetch=job.run.fetch,
        artifact="checkpoints" if name == "checkpoints" else f"checkpoints/{name}",
        threads=threads,
        warn=job.run.warn,
    )


def _open_reporter(job: StageJob, config: TrainConfig, state: TrainState, distributed: Distributed) -> MetricsReporter:
    from components.train.metrics import MetricsReporter
    from components.train.prometheus import start_metrics_server

    labels = {"stage": job.spec.name, "kind": job.spec.kind, "run": job.spec.run_id}
    server = start_metrics_server(config.metrics_port, labels, info=job.run.info, warn=job.run.warn)
    dtype = state.precision.dtype
    return MetricsReporter(config, job.run, state.model, distributed.device, dtype, distributed.size, server)


def _resume(job: StageJob, state: TrainState, checkpoints: CheckpointManager | None, distributed: Distributed) -> None:
    """Restores the newest checkpoint, on all workers the main worker's."""
    from components.train.state import share_state

    found = checkpoints.latest() if checkpoints is not None else None
    if found is not None:
        state.restore(found)
        job.run.info(f"continuing from epoch {state.position.epoch + 1}, batch {state.position.batch}")
    share_state(state, distributed, resumed=found is not None)
    warning = state.compute_setup.restore(distributed)
    if warning and distributed.is_main:
        job.run.warn(warning)


def _params(config: TrainConfig, counts: dict[str, int]) -> dict[str, object]:
    flat = {key: value for key, value in config.model_dump(mode="json").items() if not isinstance(value, dict)}
    for part in ("model", "attack"):
        values = getattr(config, part)
        flat.update({f"{part}.{k}": v for k, v in values.model_dump(mode="json").items()} if values else {})
    return {**flat, **{f"images.{name}": count for name, count in counts.items()}}


def _finish(job: StageJob, training: Training, card: ModelCard) -> dict[str, Any]:
    config, state = training.config, training.state
    figures = next((e for e in reversed(state.history) if "clean_accuracy" in e), None) or training.validate_ema()
    best = state.best["epoch"] if state.best else None
    chosen = describe_choice(state.history, best, config, training.images.split)
    if best is not None:
        figures = next(entry for entry in state.history if entry["epoch"] == best)
    result = {
        "model": card.name,
        "stem": card.stem,
        "dataset": training.images.manifest.name,
        "resolution": card.resolution,
        "epochs": config.epochs,
        "steps": state.position.step,
        "clean_accuracy": figures.get("clean_accuracy"),
        "robust_accuracy": figures.get("robust_accuracy"),
        "held_out": training.images.counts["held_out"],
        "attack": _describe_attack(config),
        "weights": chosen,
        "monitor": {name: getattr(state.monitor, name) for name in ("lr_scale", "num_rollbacks", "events")},
        "loader": training.images.train.engine,
    }
    if training.distributed.is_main:
        if state.best_weights:
            state.ema.model.load_state_dict(state.best_weights)
        _save(job, training, replace(card, details={**card.details, "stage": job.spec.name, **chosen}))
    return result


def _describe_attack(config: TrainConfig) -> dict[str, Any] | None:
    return config.attack.model_dump(mode="json") if config.attack else None


def _save(job: StageJob, training: Training, card: ModelCard) -> None:
    from components.models import save_model

    model: nn.Module = training.state.ema.model
    folder = job.run.workdir / MODEL
    if not training.state.history and training.config.epochs:
        raise UserError("nothing was trained", where=job.spec.name, remedy="raise epochs")
    save_model(folder, model, card)
    job.run.save(folder, MODEL)
    job.run.save(write_json(job.run.workdir / HISTORY, training.state.history), HISTORY)
