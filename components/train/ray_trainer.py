"""Ray Train around the training: in this process, or on workers. The only module here that imports ray.

Ray starts and watches the workers and sets up their exchange (gloo on CPUs, NCCL on GPUs). Checkpoints are ours in
either mode: Ray's local mode keeps none, and a cluster can lose the last two seconds of its reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from components.errors import UserError
from components.launch.ray_cluster import keep_sigterm_handler, start_ray
from components.process import stage_cores
from components.store.settings import StorageSettings
from components.train.config_checks import shares_evenly
from components.train.distributed import World, device_for
from components.train.prometheus import HOST_VARIABLE, PORT_VARIABLE
from components.train.signals import StopRequests
from components.train.workers import workers_for

if TYPE_CHECKING:
    from components.store.execute import StageJob
    from components.train.config import TrainConfig

Work = Callable[..., dict[str, Any]]

_RESTARTS = 3
"""How often a lost worker is replaced; each time training goes on from the last checkpoint."""
_RETURN_SECONDS, _GROW_SECONDS, _CAUSE_LENGTH = 600.0, 120.0, 300
_STOP_KEY, _ASKED = b"robustrain/stop", b"asked"
_STOP_POLL_SECONDS, _PASS_ON_SECONDS, _JOIN_SECONDS = 1.0, 0.2, 2.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def fit(work: Work, job: StageJob, config: TrainConfig) -> dict[str, Any]:
    """Runs `work(job, world, outside)` under Ray Train and returns its result.

    Args:
        work: a function of a module, so that workers can import it.
        config: 0 workers run it in this process; 1 and more, or a range, start or join a Ray cluster.

    Raises:
        UserError: as `work` raises it, or the cluster cannot hold so many workers.
    """
    os.environ.update(_QUIET)
    if config.workers == 0:
        return _fit_here(work, job, config.device)
    with _cluster(config):
        return _fit_on_workers(work, job, config)


def _fit_here(work: Work, job: StageJob, device: str) -> dict[str, Any]:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    world = World(device=device_for(device, local_rank=0))
    if world.device.type == "cpu":
        torch.set_num_threads(stage_cores())
    box: dict[str, Any] = {}

    def loop() -> None:
        box.update(work(job, world))

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()
    return box


@contextlib.contextmanager
def _cluster(config: TrainConfig) -> Iterator[None]:
    """A Ray to run on: the one this job was submitted to, or one of our own that ends with the block."""
    import ray

    os.environ.update(StorageSettings.from_environment().environment())
    if os.environ.get("RAY_ADDRESS"):
        with keep_sigterm_handler():
            ray.init(address="auto", log_to_driver=True, runtime_env={"env_vars": _environment()})
        yield
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    # Ray puts sockets below its folder, whose names the kernel limits to 107 bytes.
    folder = tempfile.mkdtemp(prefix="rt", dir="/tmp" if os.path.isdir("/tmp") else None)
    try:
        start_ray(
            num_cpus=max(config.worker_range[0], os.cpu_count() or 1),
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
            logging_level=logging.WARNING,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in (PORT_VARIABLE, HOST_VARIABLE) if name in os.environ}
    return {**_QUIET, **StorageSettings.from_environment().environment(), **kept}


def _fit_on_workers(work: Work, job: StageJob, config: TrainConfig) -> dict[str, Any]:
    """Trains on as many workers as the cluster holds; after a loss anew, from the last checkpoint.

    A request to end is only noted while Ray has the thread: an exception that a signal's handler raises inside Ray may
    come out as another one, which would look like a lost worker. The leading worker is told, takes a checkpoint, and
    ends the group. A second request ends this process as it would have without Ray.

    Raises:
        Terminated, KeyboardInterrupt: asked to end.
    """
    with StopRequests() as stop, _passed_on(stop):
        for left in reversed(range(_RESTARTS + 1)):
            gpus, workers = _workers_now(config, stop, patient=left < _RESTARTS)
            try:
                return _fit_once(work, job, config, workers, gpus=gpus)
            except Exception as error:
                stop.obey()
                own = _own_error(error)
                if own is not error or not left:
                    raise own from error
                cause = " ".join(str(error).split())[:_CAUSE_LENGTH]
                job.run.warn(f"the training on {workers} workers broke off and goes on: {cause}")
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _passed_on(stop: StopRequests) -> Iterator[None]:
    """Tells the leading worker, through the cluster's key-value store, once an end was asked for."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    over = threading.Event()

    def watch() -> None:
        while not over.wait(_PASS_ON_SECONDS):
            if stop.received is not None:
                with contextlib.suppress(Exception):  # Ray raises bare ones; asked again until it has been told
                    _internal_kv_put(_STOP_KEY, _ASKED, overwrite=True)
                    return

    _internal_kv_del(_STOP_KEY)
    watcher = threading.Thread(target=watch, daemon=True, name="stop-requests")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(_JOIN_SECONDS)  # where Ray is gone, telling it may take long


def _workers_now(config: TrainConfig, stop: StopRequests, *, patient: bool) -> tuple[bool, int]:
    """Whether workers have GPUs, and how many of them the cluster holds.

    A cluster that was joined with a range of workers is asked for the largest number, and has two minutes to grow.

    Args:
        patient: wait for machines that come back, as after a loss.

    Raises:
        UserError: too few.
        Terminated, KeyboardInterrupt: asked to end meanwhile.
    """
    import ray

    start, (least, most) = time.monotonic(), config.worker_range
    most = max((n for n in range(least, most + 1) if shares_evenly(config, n)), default=most)
    grows = least != most and bool(os.environ.get("RAY_ADDRESS"))
    while True:
        stop.obey()
        resources = ray.cluster_resources()
        gpus = config.device != "cpu" and resources.get("GPU", 0) > 0
        available = resources.get("GPU" if gpus else "CPU", 0)
        if grows:
            _ask_for({"GPU": 1} if gpus else {"CPU": 1}, most)
            if available < most and time.monotonic() < start + _GROW_SECONDS:
                time.sleep(1.0)
                continue
        try:
            return gpus, workers_for(config, available=available, unit="GPUs" if gpus else "cores")
        except UserError:
            if time.monotonic() >= start + (_RETURN_SECONDS if patient else 0.0):
                raise
            time.sleep(1.0)


def _ask_for(bundle: dict[str, int], count: int) -> None:
    """Lets a cluster that can grow do so, and keep its size while this training runs. Without effect on others."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[bundle] * count)


def _fit_once(work: Work, job: StageJob, config: TrainConfig, workers: int, *, gpus: bool) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory(prefix="rt") as storage:
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"work": work, "spec": job.spec.model_dump_json(), "device": config.device},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name=job.spec.fingerprint[:16] or "training",
                storage_path=storage,
                # Ray would start the same number again, also after an error that people have to mend.
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        return trainer.fit().return_value or {}


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every Ray worker."""
    import ray.train

    from components.errors import Terminated
    from components.store.spec import StageSpec

    context = ray.train.get_context()
    if config["device"] == "cpu" or not torch.cuda.is_available():
        # Workers of one machine share its cores.
        torch.set_num_threads(max(stage_cores() // context.get_local_world_size(), 1))
    world = World(
        context.get_world_rank(), context.get_world_size(), device_for(config["device"], context.get_local_rank())
    )
    job = reopen(StageSpec.model_validate_json(config["spec"]))
    try:
        return config["work"](job, world, _stop_asked() if world.leads else lambda: False)
    except Terminated as error:
        # Ray hands on ordinary exceptions only; the driver knows that it asked for this end.
        raise RuntimeError("ended as asked; a checkpoint was taken") from error


def reopen(spec: Any) -> StageJob:
    """A stage's job in another process: the same run, inputs and objects, found through the environment."""
    from components.store.execute import StageJob
    from components.store.objects import ObjectStore
    from components.store.tracking import Tracking

    storage = StorageSettings.from_environment()
    tracking = Tracking(storage)
    inputs = {role: tracking.finished(parent, role) for role, parent in spec.parents.items()}
    return StageJob(spec, inputs, tracking.attach(spec), ObjectStore(storage.objects_uri, storage.cache))


def _stop_asked() -> Callable[[], bool]:
    """Asks the cluster's key-value store, at most once a second, whether the driver wants an end."""
    from ray.experimental.internal_kv import _internal_kv_get

    last = 0.0

    def asked() -> bool:
        nonlocal last
        if time.monotonic() - last < _STOP_POLL_SECONDS:
            return False
        last = time.monotonic()
        return _internal_kv_get(_STOP_KEY) == _ASKED

    return asked


def _own_error(error: BaseException) -> BaseException:
    """The person's error that a worker raised, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    for cause in failures.values():
        inner = getattr(cause, "cause", cause)
        if isinstance(inner, UserError):
            return inner
    return error
