"""Runs the training under Ray Train, in this process or on workers. The only module of the package that imports ray.

Ray starts and monitors the workers and sets up their communication (gloo on CPUs, NCCL on GPUs). Checkpoints do not go
through Ray: its local mode keeps none, and a cluster can lose the last two seconds of its reports.
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
from components.launch.ray_cluster import RAY_VARIABLE, connect_ray, start_ray
from components.process import set_up_logging, stage_cores
from components.store.settings import StorageSettings
from components.train.distributed import Distributed, device_for
from components.train.prometheus import HOST_VARIABLE, PORT_VARIABLE
from components.train.signals import StopRequests
from components.train.workers import shares_evenly, workers_for

if TYPE_CHECKING:
    from components.store.execute import StageJob
    from components.train.config import TrainConfig

Work = Callable[..., dict[str, Any]]

_RESTARTS = 3
"""How often a training restarts after the loss of a worker, each time from the last checkpoint."""
_RETURN_SECONDS, _GROW_SECONDS, _CAUSE_LENGTH = 600.0, 120.0, 300
_STOP_KEY, _REQUESTED = b"robustrain/stop", b"requested"
_STOP_POLL_SECONDS, _FORWARD_SECONDS, _JOIN_SECONDS = 1.0, 0.2, 2.0
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def fit(work: Work, job: StageJob, config: TrainConfig) -> dict[str, Any]:
    """Runs `work(job, distributed, stop_requested)` under Ray Train and returns its result.

    Args:
        work: a module's function, so that workers can import it.
        config: with 0 workers it runs in this process; with 1 or more, or a range, a Ray cluster is started or joined.

    Raises:
        UserError: raised by `work`, or the cluster is too small for the workers.
    """
    os.environ.update(_RAY_ENVIRONMENT)
    if config.num_workers == 0:
        return _fit_in_this_process(work, job, config.device)
    with _cluster(config):
        return _fit_on_workers(work, job, config)


def _fit_in_this_process(work: Work, job: StageJob, device: str) -> dict[str, Any]:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    distributed = Distributed(device=device_for(device, local_rank=0))
    if distributed.device.type == "cpu":
        torch.set_num_threads(stage_cores())
    result: dict[str, Any] = {}

    def loop() -> None:
        result.update(work(job, distributed))

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()
    return result


@contextlib.contextmanager
def _cluster(config: TrainConfig) -> Iterator[None]:
    """Connects to the Ray cluster that this job was submitted to, or starts one that ends with the block."""
    import ray

    os.environ.update(StorageSettings.from_environment().environment())
    if os.environ.get(RAY_VARIABLE):
        connect_ray(log_to_driver=True, runtime_env={"env_vars": _environment()})
        yield
        return
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
    return {**_RAY_ENVIRONMENT, **StorageSettings.from_environment().environment(), **kept}


def _fit_on_workers(work: Work, job: StageJob, config: TrainConfig) -> dict[str, Any]:
    """Trains on the most workers that the cluster holds; after a loss again, from the last checkpoint.

    A request to end is only recorded while Ray has the thread: an exception that a signal's handler raises inside Ray
    may come out as another one, which would look like a lost worker. The request is forwarded to the main worker, which
    takes a checkpoint and ends the group. A second request ends this process as it would without Ray.

    Raises:
        Terminated, KeyboardInterrupt: a request to end.
    """
    with StopRequests() as stop, _forwarded(stop):
        for restarts_left in reversed(range(_RESTARTS + 1)):
            gpus, workers = _workers_now(config, stop, patient=restarts_left < _RESTARTS)
            try:
                return _fit_once(work, job, config, workers, gpus=gpus)
            except Exception as error:
                stop.raise_if_requested()
                own = _own_error(error)
                if own is not error or not restarts_left:
                    raise own from error
                cause = " ".join(str(error).split())[:_CAUSE_LENGTH]
                job.run.warn(f"the training on {workers} workers was interrupted and goes on: {cause}")
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def _forwarded(stop: StopRequests) -> Iterator[None]:
    """Forwards a request to end to the main worker, through the cluster's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    done = threading.Event()

    def watch() -> None:
        while not done.wait(_FORWARD_SECONDS):
            if stop.received is not None:
                with contextlib.suppress(Exception):  # Ray raises bare exceptions; tried again until it succeeds
                    _internal_kv_put(_STOP_KEY, _REQUESTED, overwrite=True)
                    return

    _internal_kv_del(_STOP_KEY)
    watcher = threading.Thread(target=watch, daemon=True, name="stop-requests")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(_JOIN_SECONDS)  # if Ray is gone, forwarding may take long


def _workers_now(config: TrainConfig, stop: StopRequests, *, patient: bool) -> tuple[bool, int]:
    """Returns whether workers have GPUs, and the number of workers.

    A cluster that was joined with a range of workers is asked for the largest number and has two minutes to grow.

    Args:
        patient: wait for machines to return, as after a loss.

    Raises:
        UserError: the cluster is too small.
        Terminated, KeyboardInterrupt: a request to end.
    """
    import ray

    start, (smallest, largest) = time.monotonic(), config.worker_range
    size, pairs = config.batch_size, config.mixes
    even = [n for n in range(smallest, largest + 1) if shares_evenly(size, n, pairs=pairs)]
    largest = max(even, default=largest)
    grows = smallest != largest and bool(os.environ.get(RAY_VARIABLE))
    while True:
        stop.raise_if_requested()
        resources = ray.cluster_resources()
        gpus = config.device != "cpu" and resources.get("GPU", 0) > 0
        available = resources.get("GPU" if gpus else "CPU", 0)
        if grows:
            _request_size({"GPU": 1} if gpus else {"CPU": 1}, largest)
            if available < largest and time.monotonic() < start + _GROW_SECONDS:
                time.sleep(1.0)
                continue
        try:
            unit = "GPUs" if gpus else "cores"
            return gpus, workers_for(config.worker_range, batch_size=size, pairs=pairs, available=available, unit=unit)
        except UserError:
            if time.monotonic() >= start + (_RETURN_SECONDS if patient else 0.0):
                raise
            time.sleep(1.0)


def _request_size(bundle: dict[str, int], count: int) -> None:
    """Lets a cluster that can grow do so, and keep its size while this training runs. No effect on other clusters."""
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
                # Ray would start the same number again, also after an error that only the user can fix.
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        return trainer.fit().return_value or {}


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on one Ray worker."""
    import ray.train

    from components.errors import Terminated
    from components.store.spec import StageSpec

    set_up_logging()
    context = ray.train.get_context()
    if config["device"] == "cpu" or not torch.cuda.is_available():
        # Workers of one machine share its cores.
        torch.set_num_threads(max(stage_cores() // context.get_local_world_size(), 1))
    distributed = Distributed(
        context.get_world_rank(), context.get_world_size(), device_for(config["device"], context.get_local_rank())
    )
    job = reopen(StageSpec.model_validate_json(config["spec"]))
    try:
        stop_requested = _forwarded_requests() if distributed.is_main else lambda: False
        return config["work"](job, distributed, stop_requested)
    except Terminated as error:
        # Ray returns ordinary exceptions only; the driver knows that it requested this end.
        raise RuntimeError("ended on request; a checkpoint was taken") from error


def reopen(spec: Any) -> StageJob:
    """Returns a stage's job in another process: the same run, inputs and objects, found through the environment."""
    from components.store.execute import StageJob
    from components.store.objects import ObjectStore
    from components.store.tracking import Tracking

    storage = StorageSettings.from_environment()
    tracking = Tracking(storage)
    inputs = {role: tracking.finished(parent, role) for role, parent in spec.parents.items()}
    return StageJob(spec, inputs, tracking.attach(spec), ObjectStore(storage.objects_uri, storage.cache))


def _forwarded_requests() -> Callable[[], bool]:
    """Returns a function that asks the cluster, at most once per second, for a request to end from the driver."""
    from ray.experimental.internal_kv import _internal_kv_get

    last = 0.0

    def requested() -> bool:
        nonlocal last
        if time.monotonic() - last < _STOP_POLL_SECONDS:
            return False
        last = time.monotonic()
        return _internal_kv_get(_STOP_KEY) == _REQUESTED

    return requested


def _own_error(error: BaseException) -> BaseException:
    """Returns the `UserError` that a worker raised, without Ray's wrapping; else `error`."""
    failures = getattr(error, "worker_failures", None) or {}
    for cause in failures.values():
        inner = getattr(cause, "cause", cause)
        if isinstance(inner, UserError):
            return inner
    return error
