"""Who does the units: processes on this machine, or tasks on a Ray cluster.

Measured on two cores (0.34 M parameter ConvNeXt, 64 images of 32 px, forward / with gradient): two processes of one
thread with 32 images each take 9 to 13 / 22 to 31 ms, one process of two threads 20 / 38 ms (the latter without
`keep_freed_memory`); so one thread a process is the rule on CPUs. On GPUs one
process a GPU. The only file of this room that may import ray; without a cluster ray is not needed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.evaluate import unit_file
from components.evaluate.config import EvaluateConfig
from components.evaluate.processes import Processes, Report
from components.evaluate.workload import Workload, blocks
from components.launch.ray_cluster import own_signals, start_ray
from components.process import available_cores, keep_freed_memory

RAY_VARIABLE = "RAY_ADDRESS"


def uses_ray(config: EvaluateConfig) -> bool:
    """Whether the units become Ray tasks."""
    return config.launcher == "ray" or (config.launcher == "auto" and bool(os.environ.get(RAY_VARIABLE)))


def device_of(config: EvaluateConfig) -> str:
    """ "cuda" or "cpu".

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    present = torch.cuda.is_available()
    if config.device == "cuda" and not present:
        raise UserError("there is no CUDA device here", where="device", value="cuda", remedy="use device: auto or cpu")
    return "cuda" if config.device != "cpu" and present else "cpu"


def processes_wanted(config: EvaluateConfig, device: str, resolutions: int) -> int:
    """How many processes to open for an evaluation that may have fewer images than it asks for."""
    if device == "cuda" or uses_ray(config):
        return 1
    most = resolutions * sum(len(blocks(threat.n or config.n, config.batch_size)) for threat in config.threats)
    return max(1, min(config.processes or available_cores(), most))


@contextlib.contextmanager
def opened(config: EvaluateConfig, resolutions: int) -> Iterator[Shards]:
    """The processes of an evaluation; to be opened before anything is computed (see `processes`)."""
    keep_freed_memory()
    device = "cpu" if uses_ray(config) else device_of(config)
    with Processes(processes_wanted(config, device, resolutions)) as processes:
        yield Shards(config, device, processes)


class Shards:
    """Made by `opened`.

    Attributes:
        device: "cuda" or "cpu", as recorded with the results.
    """

    def __init__(self, config: EvaluateConfig, device: str, processes: Processes) -> None:
        self.device = device
        self._config, self._processes = config, processes

    def run(self, folder: Path, model_folder: Path, workload: Workload, report: Report) -> list[unit_file.UnitResult]:
        """Does what is not done yet and returns every unit's result, in the order of the workload.

        Raises:
            UserError: one of a unit's, or a process that died; what is done stays in the folder.
        """
        if uses_ray(self._config):
            self.device = _run_on_ray(self._config, folder, model_folder, workload, report)
        else:
            self._processes.run(folder, model_folder, workload, self.device, report)
        found = [unit_file.read(unit_file.path_of(folder, k), workload.digest) for k in range(len(workload.units))]
        missing = [k for k, result in enumerate(found) if result is None]
        assert not missing, f"units {missing} were done and cannot be read"
        return [result for result in found if result is not None]


def _run_on_ray(config: EvaluateConfig, folder: Path, model_folder: Path, workload: Workload, report: Report) -> str:
    """One task a unit; folder and model travel through Ray's object store, so that no shared disk is needed."""
    import ray
    from ray.exceptions import RayTaskError

    address = os.environ.get(RAY_VARIABLE) or "local"
    if address != "local":
        with own_signals():
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    elif not ray.is_initialized():
        start_ray(log_to_driver=False)
    on_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    device = "cuda" if on_gpu else "cpu"
    wanted = [
        number
        for number in workload.by_weight()
        if unit_file.read(unit_file.path_of(folder, number), workload.digest) is None
    ]
    task = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=2)(_remote_unit)
    shipped = ray.put((_packed(folder), _packed(model_folder)))
    running = {task.remote(shipped, workload.digest, number, device): number for number in wanted}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            _store(unit_file.path_of(folder, number), ray.get(done))
        except RayTaskError as error:
            # Ray raises a class that is both its own and the task's; people get the task's own words.
            raise error.cause if isinstance(error.cause, UserError) else error from None
        report(number, "", 1.0)
    return device


def _packed(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("unit-"))
    return {path.name: path.read_bytes() for path in files}


def _store(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


_BENCHES: dict[tuple[str, str], Any] = {}
"""Of this Ray worker process: the bench it has set up, so that the model is loaded once and not for every unit."""


def _remote_unit(shipped: tuple[dict[str, bytes], dict[str, bytes]], digest: str, number: int, device: str) -> bytes:
    from components.evaluate.bench import Bench

    if (digest, device) not in _BENCHES:
        keep_freed_memory()
        root = Path(tempfile.mkdtemp(prefix="robustrain-evaluate-"))
        for name, files in zip(("workload", "model"), shipped):
            (root / name).mkdir()
            for file, content in files.items():
                (root / name / file).write_bytes(content)
        _BENCHES.clear()
        _BENCHES[digest, device] = Bench(root / "workload", root / "model", device)
    return _BENCHES[digest, device].attack(number).read_bytes()
