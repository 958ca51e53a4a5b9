"""The five training stages: builds the first network, trains it, saves the averaged weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from components.errors import UserError
from components.store.digests import write_json
from components.train.config import CONFIGS, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from components.models import ModelCard
    from components.store.job import StageJob
    from components.train.checkpoint import CheckpointStore
    from components.train.loop import Training
    from components.train.state import TrainState
    from components.train.world import World

MODEL, HISTORY = "model", "history.json"


def run(job: StageJob) -> dict[str, Any]:
    """Trains one stage.

    Artifacts: `model/` (the averaged weights, or those of the best probe), `history.json` (a list, one entry an epoch),
    and `checkpoints/` for resuming.

    Returns:
        model, stem, epochs, steps, clean_accuracy, robust_accuracy (held-out training images; null where not measured),
        held_out (their number), and what was chosen.

    Raises:
        UserError: the configuration does not fit the data or the weights, or training failed in a known way.
    """
    from components.train.worker import fit

    config = parse(job)
    result = fit(work, job, workers=config.workers, device=config.device)
    if config.workers:
        _take_over(job)
    return result


def _take_over(job: StageJob) -> None:
    """Makes what a worker saved an output of this process's run, whose manifest lists what went through it."""
    for artifact in (MODEL, HISTORY):
        found = job.run.fetch(artifact, job.run.workdir / "from-worker" / artifact)
        assert found is not None, f"the leading worker saved no {artifact}"
        job.run.save(found, artifact)


def parse(job: StageJob) -> TrainConfig:
    """The stage's configuration."""
    return CONFIGS[job.spec.kind].model_validate(job.spec.config)


def work(job: StageJob, world: World, outside: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """What every worker does; only the leading one writes. The result is the same on all of them."""
    from components.train.images import TrainImages
    from components.train.initial import initial_model
    from components.train.loop import Training
    from components.train.state import TrainState

    config = parse(job)
    seed = job.spec.seed + config.seed_offset
    images = TrainImages(job, config, world, seed)
    first = initial_model(job, config, images.manifest, seed)
    state = TrainState.start(first.model, first.card.name, config, world)
    store = _open_checkpoints(job) if world.leads else None
    try:
        _continue(state, store, world)
        if world.leads:
            job.run.log_params(_params(config, images.counts))
        report = job.run if world.leads else None
        training = Training(config, seed, world, images, state, store, report, outside=outside)
        training.run()
        return _finish(job, training, first.card)
    finally:
        if store is not None:
            store.close()


def _open_checkpoints(job: StageJob) -> CheckpointStore:
    from components.train.checkpoint import CheckpointStore

    return CheckpointStore(
        job.run.workdir / "checkpoints",
        job.spec.fingerprint,
        upload=job.run.save,
        fetch=job.run.fetch,
    )


def _continue(state: TrainState, store: CheckpointStore | None, world: World) -> None:
    """Goes on from the newest checkpoint, on all workers from the leading one's."""
    from components.train.resume import share_state

    found = store.latest() if store is not None else None
    if found is not None:
        state.restore(found)
        print(f"continuing from epoch {state.position.epoch + 1}, batch {state.position.batch}", flush=True)
    share_state(state, world, resumed=found is not None)


def _params(config: TrainConfig, counts: dict[str, int]) -> dict[str, object]:
    flat = {key: value for key, value in config.model_dump(mode="json").items() if not isinstance(value, dict)}
    for part in ("model", "attack"):
        values = getattr(config, part)
        flat.update({f"{part}.{k}": v for k, v in values.model_dump(mode="json").items()} if values else {})
    return {**flat, **{f"images.{name}": count for name, count in counts.items()}}


def _finish(job: StageJob, training: Training, card: ModelCard) -> dict[str, Any]:
    config, state = training.config, training.state
    figures = next((e for e in reversed(state.history) if "clean_accuracy" in e), None) or training.probe()
    chosen = _choose(state, config)
    if state.best_weights:
        figures = next(entry for entry in state.history if entry["epoch"] == state.best["epoch"])
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
        "loader": training.images.train.engine,
    }
    if training.world.leads:
        _save(job, training, replace(card, details={**card.details, "stage": job.spec.name, **chosen}))
    return result


def _choose(state: TrainState, config: TrainConfig) -> dict[str, Any]:
    if not state.best_weights:
        return {"rule": "last", "ema_decay": config.ema_decay, "epoch": state.position.epoch}
    state.ema.model.load_state_dict(state.best_weights)
    return {"rule": "best probe", "ema_decay": config.ema_decay, **state.best}


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
