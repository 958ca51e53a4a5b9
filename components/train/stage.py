"""The five training stages: builds the first network, trains it, saves the averaged weights."""

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
    from components.train.checkpoint_manager import CheckpointStore, Hands
    from components.train.distributed import World
    from components.train.loop import Training
    from components.train.metrics import Telling
    from components.train.state import TrainState

MODEL = "model"


def run(job: StageJob) -> dict[str, Any]:
    """Trains one stage.

    Artifacts: `model/` (the averaged weights, or those of the best probe), `history.json` (a list, one entry an epoch),
    and `checkpoints/` for resuming.

    Returns:
        model, stem, epochs, steps, clean_accuracy, robust_accuracy (held-out training images; null where not measured),
        held_out (their number), which weights were chosen and how (`weights`), and what went wrong (`health`).

    Raises:
        UserError: the configuration does not fit the data or the weights, or training failed in a known way.
    """
    from components.train.ray_trainer import fit

    config = parse(job)
    result = fit(work, job, config)
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
    from components.process import keep_freed_memory
    from components.train.checkpoint_manager import Hands
    from components.train.images import TrainImages
    from components.train.initial_model import initial_model
    from components.train.loop import Training
    from components.train.monitor import Guard
    from components.train.state import TrainState

    keep_freed_memory()
    config = parse(job)
    seed = job.spec.seed + config.seed_offset
    images = TrainImages(job, config, world, seed)
    first = initial_model(job, config, images.manifest, seed)
    state = TrainState.start(first.model, first.card.name, config, world)
    hands = Hands() if world.leads else None
    store = _open_checkpoints(job, "checkpoints", hands) if hands else None
    good = _open_checkpoints(job, "good", hands) if hands and config.health.goes_back else None
    telling = _open_telling(job, config, state, world) if world.leads else None
    try:
        _continue(job, state, store, world)
        if world.leads:
            job.run.log_params(
                {
                    **_params(config, images.counts),
                    "workers_taken": world.size,
                    "jpeg_decoder": images.train.jpeg_decoder,
                }
            )
        guard = Guard(
            config.health, state, world, images.num_classes, images.counts["held_out"], good, warn=job.run.warn
        )
        training = Training(config, seed, world, images, state, guard, store, telling, outside=outside)
        training.run()
        return _finish(job, training, first.card)
    finally:
        for opened in (hands, telling):
            if opened is not None:
                opened.close()


def _open_checkpoints(job: StageJob, name: str, hands: Hands) -> CheckpointStore:
    """The store of resumable states ("checkpoints"), or of states to go back to ("good")."""
    from components.train.checkpoint_manager import CheckpointStore

    return CheckpointStore(
        job.run.workdir / name,
        job.spec.fingerprint,
        upload=job.run.save,
        fetch=job.run.fetch,
        artifact="checkpoints" if name == "checkpoints" else f"checkpoints/{name}",
        hands=hands,
        warn=job.run.warn,
    )


def _open_telling(job: StageJob, config: TrainConfig, state: TrainState, world: World) -> Telling:
    from components.train.metrics import Telling
    from components.train.prometheus import open_exposition

    labels = {"stage": job.spec.name, "kind": job.spec.kind, "run": job.spec.run_id}
    exposition = open_exposition(config.metrics_port, labels)
    return Telling(config, job.run, state.model, world.device, state.precision.dtype, world.size, exposition)


def _continue(job: StageJob, state: TrainState, store: CheckpointStore | None, world: World) -> None:
    """Goes on from the newest checkpoint, on all workers from the leading one's."""
    from components.train.state import share_state

    found = store.latest() if store is not None else None
    if found is not None:
        state.restore(found)
        job.run.info(f"continuing from epoch {state.position.epoch + 1}, batch {state.position.batch}")
    share_state(state, world, resumed=found is not None)
    warning = state.computing.take_over(world)
    if warning and world.leads:
        job.run.warn(warning)


def _params(config: TrainConfig, counts: dict[str, int]) -> dict[str, object]:
    flat = {key: value for key, value in config.model_dump(mode="json").items() if not isinstance(value, dict)}
    for part in ("model", "attack"):
        values = getattr(config, part)
        flat.update({f"{part}.{k}": v for k, v in values.model_dump(mode="json").items()} if values else {})
    return {**flat, **{f"images.{name}": count for name, count in counts.items()}}


def _finish(job: StageJob, training: Training, card: ModelCard) -> dict[str, Any]:
    config, state = training.config, training.state
    figures = next((e for e in reversed(state.history) if "clean_accuracy" in e), None) or training.probe()
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
        "health": {"lr_scale": state.health.lr_scale, "went_back": state.health.backs, "events": state.health.events},
        "loader": training.images.train.engine,
    }
    if training.world.leads:
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
