"""Runs functions in child processes that are forked from a preloaded parent, `multiprocessing`'s forkserver.

Importing torch, timm, ray and mlflow takes ten seconds on two cores. The forkserver imports them once; a fork costs
milliseconds. It has one thread and never computes, so that forking is safe: no OpenMP region has run and no data base
is open when a child begins.

A child leads a process session of its own, by which everything that it has started is found and ended. It watches the
command that it works for (the forkserver outlives a killed command while children live) and ends when that dies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from components.errors import RemoteUserError, Terminated, UserError
from components.launch.forkserver_setup import FORKSERVER_VARIABLE
from components.process import GRACE_SECONDS, ask_to_end, end_sessions, session_members, signal_all

_log = logging.getLogger(__name__)
_FORKSERVER_DIED = 255
"""Exit code that `multiprocessing` makes up for a child whose forkserver has died."""
_STOP_SECONDS = 1.0
_LONGEST_TMPDIR = 70
"""Bytes: a Unix socket's path has at most 107, and `multiprocessing` adds up to 32 to the folder's."""
_TUNING = {
    # glibc keeps freed memory: else it returns every layer's output to the kernel and faults the same pages in again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    # Threads that wait sleep: where anything else runs, spinning ones cost more than the work (measured: 4 times).
    "OMP_WAIT_POLICY": "PASSIVE",
}
_IMPORTS = {
    # `python -c`, which `multiprocessing` uses, looks in the working folder first: a user's `random.py` there would be
    # run instead of the standard library's, in every process that is started from here.
    "PYTHONSAFEPATH": "1",
}
# `Process.start` and `Process.join` read the same pipes, also those of other children; two threads must not.
_process_lock = threading.Lock()


class ChildFailed(RuntimeError):
    """The child's function raised (its traceback is in the log), or the child was ended by a signal."""


class ChildStopped(Exception):
    """The child was ended, or not started, because `Children.stop` was called."""


class ForkserverDied(RuntimeError):
    """The process that forks the children was killed."""


@dataclass(frozen=True)
class _Task:
    """What a child does: `function(*arguments)`, with its output in a file."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    log: str
    nice: int
    environment: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def start_forkserver(log: Path, preload: Sequence[str]) -> None:
    """Starts the forkserver, which begins to import `preload` and returns at once; does nothing where it runs.

    Called in the main thread: the forkserver ends with the thread that started it.

    Args:
        log: file for what the imports write.
        preload: modules; those that are not installed are ignored.
    """
    forkserver.set_forkserver_preload(["components.launch.forkserver_setup", *preload])
    # glibc and OpenMP read their variables when a process starts.
    added = {**_TUNING, **_IMPORTS, "PYTHONUNBUFFERED": "1", FORKSERVER_VARIABLE: str(os.getpid())}
    with _environment(added), _stderr_in(log):
        _make_short_temporary_folder()
        forkserver.ensure_running()


def stop_forkserver() -> None:
    """Ends the forkserver and `multiprocessing`'s resource tracker, and waits for their end.

    Both end by themselves, but only some moments after this process: whoever waits for an interrupted command would
    find them alive.
    """
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # While it imports, it does not see that it is asked to end.
    for server in (forkserver._forkserver, resource_tracker._resource_tracker):
        # A thread, as the tracker ends only once no process holds its pipe any more.
        thread = threading.Thread(target=_stopped, args=(server,), daemon=True)
        thread.start()
        thread.join(_STOP_SECONDS)


def _stopped(server: Any) -> None:
    with contextlib.suppress(OSError):
        server._stop()


def _make_short_temporary_folder() -> None:
    """Makes the folder of the forkserver's socket: below TMPDIR, or below /tmp if TMPDIR is too long for a socket."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()  # Made once; `multiprocessing` remembers it.
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in added.items() if name not in before or name not in _TUNING})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in added if name in before})


@contextlib.contextmanager
def _stderr_in(log: Path) -> Iterator[None]:
    """Lets processes that are started here write their standard error to a file; they take it from descriptor 2."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


class Children:
    """The children of one run.

    Args:
        environment: variables of every child, over those that the forkserver was started with.
        without: names of variables that no child gets.
    """

    def __init__(self, environment: Mapping[str, str], without: Sequence[str] = ()) -> None:
        self._environment, self._without = dict(environment), tuple(without)
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, function: Callable[..., None], *arguments: Any, log: Path, nice: int = 0) -> None:
        """Runs a function of a module in a child and returns when it and all that it has started have ended.

        Args:
            arguments: of the function; they are pickled.
            log: file that the child's standard output and error are appended to.
            nice: how far the child gives way to other processes.

        Raises:
            UserError: as the function raised it.
            ChildFailed: the function raised anything else, or the child was killed.
            ChildStopped: `stop` was called.
            ForkserverDied: the forkserver was killed; the child is ended.
        """
        task = _Task(function, arguments, str(log), nice, self._environment, self._without)
        log.parent.mkdir(parents=True, exist_ok=True)
        reader, child = self._start(task)
        pid = child.pid
        assert pid is not None
        try:
            with self._lock:
                self._running.add(pid)
                stopped = self._stopped
            if stopped:
                end_sessions([pid])
            answer, code = _ended(reader, child)
            # What a killed child has started does not always end with it, and would work on beside the next try.
            end_sessions([pid])
        finally:
            with self._lock:
                self._running.discard(pid)
        self._judge(answer, code, log)

    def _start(self, task: _Task) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("forkserver")
        with _process_lock:
            if self._stopped:
                raise ChildStopped
            reader, writer = context.Pipe(duplex=False)
            child = context.Process(target=_work, args=(task, writer))
            try:
                with _no_main_module():
                    child.start()
            except (EOFError, OSError) as error:
                raise ForkserverDied("the process that starts the stages was killed") from error
            finally:
                writer.close()
        _log.debug("process %s started; its log is %s", child.pid, task.log)
        return reader, child

    def _judge(self, answer: dict[str, str] | None, code: int, log: Path) -> None:
        if answer == {}:
            return
        if self._stopped:
            raise ChildStopped
        if answer is None:
            if code == _FORKSERVER_DIED:
                raise ForkserverDied("the process that starts the stages was killed")
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise ChildFailed(f"its process was ended by {how}; the log is {log}")
        if answer["kind"] == "UserError":
            raise RemoteUserError(answer["text"])
        if answer["kind"] == "Terminated":
            raise ChildFailed(f"its process was ended by SIGTERM; the log is {log}")
        raise ChildFailed(answer["text"])

    def stop(self) -> None:
        """Ends all children with everything they have started; no other child starts. Returns when they are gone."""
        with self._lock:
            self._stopped = True
            running = set(self._running)
        end_sessions(running)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keeps a child from importing the command's main module once more: no task is defined there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ended(reader: Connection, child: Any) -> tuple[dict[str, str] | None, int]:
    """Waits for a child's end; returns its answer (None where it sent none) and its exit code."""
    answer = None
    with reader:
        # Not the pipe alone: processes that the child has forked may hold it open after the child's death.
        wait([child.sentinel])
        with _process_lock:
            child.join()
            code = child.exitcode
        with contextlib.suppress(EOFError, OSError):
            if reader.poll():
                answer = json.loads(reader.recv_bytes())
    return answer, code


def _work(task: _Task, writer: Connection) -> None:
    """In the child: does the task, sends its answer, and ends the process."""
    os.setsid()
    with open(task.log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(task.environment)
    for name in (FORKSERVER_VARIABLE, *task.without):
        os.environ.pop(name, None)
    os.nice(task.nice)
    signal.signal(signal.SIGTERM, _terminate)
    done = threading.Event()
    watcher = threading.Thread(target=_end_with_command, args=(done,), daemon=True, name="command-watcher")
    watcher.start()
    answer: dict[str, str] = {}
    try:
        task.function(*task.arguments)
    except BaseException as error:
        traceback.print_exc()
        answer = _described(error)
    done.set()
    with contextlib.suppress(OSError):
        writer.send_bytes(json.dumps(answer).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    if _command_died():
        watcher.join()
    # No clean-up of `multiprocessing` and no waiting for threads: the result is complete and the answer sent.
    os._exit(1 if answer else 0)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _described(error: BaseException) -> dict[str, str]:
    kind = "UserError" if isinstance(error, UserError) else type(error).__name__
    return {"kind": kind, "text": str(error) if kind == "UserError" else f"{kind}: {error}"}


def _command_died() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _end_with_command(done: threading.Event) -> None:
    """Runs in a thread of the child: waits for the command's death, then ends this child's session, itself last."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    own, deadline = os.getpid(), time.monotonic() + GRACE_SECONDS
    ask_to_end([own])
    while time.monotonic() < deadline and not (done.is_set() and session_members(own) == [own]):
        time.sleep(0.05)
    signal_all([process for process in session_members(own) if process != own], signal.SIGKILL)
    os.kill(own, signal.SIGKILL)
