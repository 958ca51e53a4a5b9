"""Does the units of an evaluation: in this process, in forked processes on this machine, or as tasks on a Ray cluster.

Measured on two cores (0.34 M parameter ConvNeXt, 64 images of 32 px, forward / with gradient): two processes of one
thread with 32 images each take 9 to 13 / 22 to 31 ms, one process of two threads 20 / 38 ms (the latter without
`keep_freed_memory`); so one thread a process is the rule on CPUs. On GPUs one process a GPU. The only file of this
package that may import ray; without a cluster ray is not needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from components.errors import RemoteUserError, UserError
from components.evaluate import work_units
from components.evaluate.config import EvaluateConfig
from components.evaluate.unit_worker import UnitWorker
from components.evaluate.work_units import UnitResult, Workload, blocks
from components.files import write_atomically
from components.launch.ray_cluster import RAY_VARIABLE, connect_ray, require_ray, start_ray
from components.process import exit_with_parent, keep_freed_memory, stage_cores

_POLL_SECONDS = 0.2
_JOIN_SECONDS = 5.0

Report = Callable[[int, str, float], None]
"""Called with the unit's number, the title of the running part of the attack and the finished share of the unit."""


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
        raise UserError(
            "this machine has no CUDA device", where="device", value="cuda", remedy="use device: auto or cpu"
        )
    return "cuda" if config.device != "cpu" and present else "cpu"


def most_units(config: EvaluateConfig, num_resolutions: int) -> int:
    """Number of units of an evaluation, if the split has as many images as it asks for; else there are fewer."""
    per_threat = (len(blocks(t.num_images or config.num_images, config.batch_size)) for t in config.threats)
    return num_resolutions * sum(per_threat)


def processes_for(config: EvaluateConfig, device: str, num_resolutions: int) -> int:
    """Number of processes for an evaluation: the cores of the stage, and no more than there are units."""
    if device == "cuda" or uses_ray(config):
        return 1
    return max(1, min(config.num_processes or stage_cores(), most_units(config, num_resolutions)))


@contextlib.contextmanager
def open_executor(config: EvaluateConfig, num_resolutions: int) -> Iterator[UnitExecutor]:
    """Opens the processes of an evaluation, before anything is computed (see `LocalProcesses`).

    Raises:
        UserError: a GPU or a Ray cluster is asked for and there is none.
    """
    if uses_ray(config):
        require_ray()
    keep_freed_memory()
    device = "cpu" if uses_ray(config) else device_of(config)
    count = processes_for(config, device, num_resolutions)
    with LocalProcesses(count, most_units(config, num_resolutions)) as processes:
        yield UnitExecutor(config, device, processes)


class UnitExecutor:
    """Does all units of a workload; made by `open_executor`.

    Attributes:
        device: "cuda" or "cpu", as recorded with the results.
    """

    def __init__(self, config: EvaluateConfig, device: str, processes: LocalProcesses) -> None:
        self.device = device
        self._config, self._processes = config, processes

    def run(self, folder: Path, model_folder: Path, workload: Workload, report: Report) -> list[UnitResult]:
        """Does the units that are not finished and returns every unit's result, in the order of the workload.

        Raises:
            UserError: raised by a unit, or a process that died; finished units stay in the folder.
        """
        if uses_ray(self._config):
            self.device = _run_on_ray(self._config, folder, model_folder, workload, report)
        else:
            self._processes.run(folder, model_folder, workload, self.device, report)
        found = [_finished(folder, number, workload) for number in range(len(workload.units))]
        missing = [number for number, result in enumerate(found) if result is None]
        assert not missing, f"units {missing} were done and cannot be read"
        return [result for result in found if result is not None]


def _finished(folder: Path, number: int, workload: Workload) -> UnitResult | None:
    return work_units.read_unit(work_units.unit_path(folder, number), workload.digest)


class _UnitState(ctypes.Structure):
    """Progress of one unit in memory that all processes share. Display only, so that no lock is needed.

    A lock would stay locked for ever if its owner is killed.
    """

    _fields_ = (("pid", ctypes.c_int), ("share", ctypes.c_double), ("part", ctypes.c_char * 40))


class LocalProcesses:
    """Processes on this machine that share the units of a workload; a context, at whose end they are gone.

    They are forked when this object is made, before this process loads a model or computes anything: a fork then costs
    milliseconds where a new interpreter with torch costs five seconds of a core, and there is no OpenMP pool yet that a
    fork would break (each child computes with one thread, which needs no pool). A child ignores Ctrl-C, which the
    parent handles, and dies with its parent. With a count of 1 there is no child: this process does the units.

    Args:
        count: number of processes; 1 on a GPU.
        most_units: upper bound of the number of units.
    """

    def __init__(self, count: int, most_units: int) -> None:
        self.children: list[BaseProcess] = []
        self._pool: ProcessPoolExecutor | None = None
        self._states = RawArray(_UnitState, most_units)
        if count == 1:
            return
        context = multiprocessing.get_context("fork")
        before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(count, context, _prepare_child, (os.getpid(), self._states))
        # The first submission forks all children of a pool whose context is fork.
        self._pool.submit(os.getpid)
        self.children = [child for child in multiprocessing.active_children() if child not in before]
        assert len(self.children) == count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is None:
            return
        if kind is not None:
            # A unit takes minutes; nobody waits for one whose evaluation has failed or was interrupted.
            for child in self.children:
                child.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None

    def run(self, folder: Path, model_folder: Path, workload: Workload, device: str, report: Report) -> None:
        """Does every unit of the workload; which process does which does not matter.

        Raises:
            UserError: raised by a unit, or a process that died. Finished units stay in the folder.
        """
        if self._pool is None:
            _run_here(UnitWorker(folder, model_folder, device), report)
            return
        futures = {
            self._pool.submit(_do_unit, folder, model_folder, device, number): number for number in workload.by_cost()
        }
        try:
            self._follow(futures, report)
        except BrokenProcessPool as error:
            running = set(futures.values()) - {futures[future] for future in futures if _succeeded(future)}
            raise self._death(workload, running) from error

    def _follow(self, futures: dict[Future[None], int], report: Report) -> None:
        """Reports progress until all units are done; raises what the first failed one raised."""
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()
                report(futures[future], "", 1.0)
            for future in waiting:
                state = self._states[futures[future]]
                if state.pid:
                    report(futures[future], state.part.decode(errors="replace"), state.share)

    def _death(self, workload: Workload, running: set[int]) -> UserError:
        """The error that names the process that died, how, and the unit that it was doing."""
        for child in self.children:
            child.join(_JOIN_SECONDS)
        # The pool ends the other children by SIGTERM once it has noticed the first death.
        died = sorted(self.children, key=lambda child: child.exitcode in (None, 0, -signal.SIGTERM))[0]
        code = died.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        own = [number for number in running if self._states[number].pid == died.pid]
        return UserError(
            f"a process of the evaluation ended with {how}{_during(workload, own[0]) if own else ''}",
            where="evaluate",
            remedy="free memory, or lower num_processes or batch_size, and run again; finished blocks are kept",
        )


def _during(workload: Workload, number: int) -> str:
    unit = workload.units[number]
    what = f"images {unit.start} to {unit.stop - 1} with {workload.threats[unit.threat].title}"
    return f" while it attacked {what} at {unit.resolution} px"


def _succeeded(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _run_here(worker: UnitWorker, report: Report) -> None:
    for number in worker.workload.by_cost():
        worker.attack(number, lambda part, share, number=number: report(number, part, share))
        report(number, "", 1.0)


_parent = 0
_states: Any = None
_worker: tuple[tuple[Path, Path, str], UnitWorker] | None = None
"""Of a child: its parent, the shared progress, and the worker, so that the model is loaded once and not per unit."""


def _prepare_child(parent: int, states: Any) -> None:
    global _parent, _states, _worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(parent, signal.SIGKILL)
    import torch

    # Before anything else: with more than one thread a child would wait for an OpenMP pool that only its parent has.
    torch.set_num_threads(1)
    _parent, _states, _worker = parent, states, None


def _do_unit(folder: Path, model_folder: Path, device: str, number: int) -> None:
    """Runs in a child: does one unit and raises only errors that can be pickled."""
    global _worker
    key = folder, model_folder, device
    state = _states[number]
    state.pid = os.getpid()

    def progress(part: str, share: float) -> None:
        if os.getppid() != _parent:
            os._exit(1)
        state.part, state.share = part.encode()[:40], share

    try:
        if _worker is None or _worker[0] != key:
            _worker = key, UnitWorker(folder, model_folder, device)
        _worker[1].attack(number, progress)
    except UserError as error:
        raise RemoteUserError(str(error)) from None
    except Exception:
        raise RuntimeError(f"an evaluation process failed:\n{traceback.format_exc()}") from None


def _run_on_ray(config: EvaluateConfig, folder: Path, model_folder: Path, workload: Workload, report: Report) -> str:
    """One task a unit; folder and model travel through Ray's object store, so that no shared disk is needed."""
    import ray
    from ray.exceptions import RayTaskError

    address = os.environ.get(RAY_VARIABLE) or "local"
    if address != "local":
        connect_ray(ignore_reinit_error=True, log_to_driver=False)
    elif not ray.is_initialized():
        start_ray(log_to_driver=False)
    on_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    device = "cuda" if on_gpu else "cpu"
    wanted = [number for number in workload.by_cost() if _finished(folder, number, workload) is None]
    task = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=2)(_remote_unit)
    shipped = ray.put((_packed(folder), _packed(model_folder)))
    running = {task.remote(shipped, workload.digest, number, device): number for number in wanted}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            write_atomically(work_units.unit_path(folder, number), ray.get(done), fsync=False)
        except RayTaskError as error:
            # Ray raises a class that is both its own and the task's; users get the task's own message.
            raise error.cause if isinstance(error.cause, UserError) else error from None
        report(number, "", 1.0)
    return device


def _packed(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("unit-"))
    return {path.name: path.read_bytes() for path in files}


_remote_workers: dict[tuple[str, str], UnitWorker] = {}
"""Of this Ray worker process: its `UnitWorker`, so that the model is loaded once and not for every unit."""


def _remote_unit(shipped: tuple[dict[str, bytes], dict[str, bytes]], digest: str, number: int, device: str) -> bytes:
    if (digest, device) not in _remote_workers:
        keep_freed_memory()
        root = Path(tempfile.mkdtemp(prefix="robustrain-evaluate-"))
        for name, files in zip(("workload", "model"), shipped):
            (root / name).mkdir()
            for file, content in files.items():
                (root / name / file).write_bytes(content)
        _remote_workers.clear()
        _remote_workers[digest, device] = UnitWorker(root / "workload", root / "model", device)
    return _remote_workers[digest, device].attack(number).read_bytes()
