"""Processes on this machine that share the units of a workload.

They are forked before this process loads a model or computes anything: a fork then costs milliseconds where a new
interpreter with torch costs five seconds of a core, and there is no OpenMP pool yet that a fork would break (each
child computes with one thread, which needs no pool). A child talks JSON over a pipe, ignores Ctrl-C, which is the
parent's affair, and dies with its parent.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from components.errors import UserError
from components.evaluate.workload import Workload
from components.process import exit_with_parent

Report = Callable[[int, str, float], None]
"""Told the unit's number, the attack at work and the share of the unit that is done."""


class Elsewhere(UserError):
    """A `UserError` of another process, in the words it was said in there."""

    def __init__(self, text: str) -> None:
        super().__init__("", remedy="")
        self.args = (text,)


class Processes:
    """This process and `count - 1` forked ones; a context, at whose end the others are gone.

    Open it before anything is computed. On a GPU `count` is 1.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._children: list[tuple[Any, Connection]] = []
        self._failure: BaseException | None = None
        for position in range(count - 1):
            ours, theirs = context.Pipe()
            others = [pipe for _, pipe in self._children] + [ours]
            child = context.Process(
                target=_serve, args=(theirs, others, os.getpid()), daemon=True, name=f"evaluate-{position + 1}"
            )
            child.start()
            theirs.close()
            self._children.append((child, ours))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the other processes."""
        for child, pipe in self._children:
            child.kill()
            child.join()
            pipe.close()
        self._children.clear()

    def run(self, folder: Path, model_folder: Path, workload: Workload, device: str, report: Report) -> None:
        """Does every unit of the workload; which process does which does not matter.

        Raises:
            UserError: one of a unit's, or a process that died. What is done stays in the folder.
        """
        from components.evaluate.bench import Bench

        waiting = deque(workload.by_weight())
        request = {"folder": str(folder), "model": str(model_folder), "device": device}
        feeders = [
            threading.Thread(target=self._feed, args=(child, pipe, waiting, request, workload, report), daemon=True)
            for child, pipe in self._children
        ]
        for feeder in feeders:
            feeder.start()
        bench = Bench(folder, model_folder, device)
        while (number := _next(waiting)) is not None:
            bench.attack(number, lambda attack, share, number=number: self._report(report, number, attack, share))
            self._report(report, number, "", 1.0)
        for feeder in feeders:
            while feeder.is_alive():
                feeder.join(0.2)
                self._stop_on_failure()
        self._stop_on_failure()

    def _report(self, report: Report, number: int, attack: str, share: float) -> None:
        self._stop_on_failure()
        report(number, attack, share)

    def _stop_on_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _feed(
        self,
        child: Any,
        pipe: Connection,
        waiting: deque[int],
        request: dict[str, Any],
        workload: Workload,
        report: Report,
    ) -> None:
        """Runs in a thread: gives one child units until none is left."""
        while self._failure is None and (number := _next(waiting)) is not None:
            try:
                pipe.send_bytes(json.dumps({**request, "unit": number}).encode())
                while "done" not in (answer := json.loads(pipe.recv_bytes())):
                    if "error" in answer:
                        self._failure = _error(answer)
                        return
                    report(number, answer["attack"], answer["share"])
                report(number, "", 1.0)
            except (EOFError, OSError):
                child.join(5)
                self._failure = self._failure or _death(child.exitcode, workload, number)
                return


def _next(waiting: deque[int]) -> int | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _error(answer: dict[str, Any]) -> BaseException:
    if answer["error"] == "UserError":
        return Elsewhere(answer["text"])
    return RuntimeError(f"an evaluation process failed:\n{answer['text']}")


def _death(code: int | None, workload: Workload, number: int) -> UserError:
    unit = workload.units[number]
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
    return UserError(
        f"a process of the evaluation ended with {how} while it attacked images {unit.start} to {unit.stop - 1} with "
        f"{workload.threats[unit.threat].title} at {unit.resolution} px",
        where="evaluate",
        remedy="free memory, or lower processes or batch_size, and run again; finished blocks are kept",
    )


def _serve(pipe: Connection, others: Sequence[Connection], parent: int) -> None:
    """A child's life: units until the pipe closes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(parent, signal.SIGKILL)
    for other in others:
        other.close()
    import torch

    from components.evaluate.bench import Bench

    # Before anything else: with more than one thread a child would wait for an OpenMP pool that only its parent has.
    torch.set_num_threads(1)

    bench: Bench | None = None
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            bench = bench or Bench(Path(request["folder"]), Path(request["model"]), request["device"])
            bench.attack(request["unit"], _Teller(pipe, parent))
            answer = {"done": request["unit"]}
        except UserError as error:
            answer = {"error": "UserError", "text": str(error)}
        except Exception:
            answer = {"error": "Exception", "text": traceback.format_exc()}
        pipe.send_bytes(json.dumps(answer).encode())


class _Teller:
    """Sends a share of a unit each time it has grown by a hundredth."""

    def __init__(self, pipe: Connection, parent: int) -> None:
        self._pipe, self._parent, self._told = pipe, parent, -1.0

    def __call__(self, attack: str, share: float) -> None:
        if os.getppid() != self._parent:
            os._exit(1)
        if share - self._told >= 0.01:
            self._told = share
            self._pipe.send_bytes(json.dumps({"attack": attack, "share": share}).encode())
