"""A warm host: one process that has paid for the imports, and forks a child for every call.

Importing torch, timm, ray and mlflow takes ten seconds on two cores, and a pipeline has twenty steps, each in a process
of its own. The host imports them once; a fork costs milliseconds. It stays single-threaded and never computes, so
that forking is safe: no OpenMP region has run and no data base is open when a child begins.

Protocol, over a Unix stream socket, one call a connection: the caller sends one JSON line
`{"call": "module:function", "kwargs": {...}, "preload": [...], "nice": 0, "environment": {...}}` with the descriptor of
its log file; the child answers with one JSON line, `{"result": ...}` or `{"error": {"kind", "text"}}`. A connection
that closes without an answer means that the child died.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.process import exit_with_parent

SOCKET_VARIABLE = "ROBUSTRAIN_WARM"
_LONGEST = 1 << 22
_TUNING = {
    # glibc keeps freed memory: else it returns every layer's output to the kernel and faults the same pages in again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    # Threads that wait sleep: where anything else runs, spinning ones cost more than the work (measured: 4 times).
    "OMP_WAIT_POLICY": "PASSIVE",
}


class CallFailed(RuntimeError):
    """The called function raised (its traceback is in the log), or its process died."""


def call(address: str, log: Path, *, preload: Sequence[str] = (), nice: int = 0, **kwargs: Any) -> Any:
    """Runs `module:function(**kwargs)` and returns its JSON-able result.

    In a child of the warm host where `ROBUSTRAIN_WARM` names one, else in this process.

    Args:
        log: file that receives the function's standard output and error; only used with a host.
        preload: modules that the host imports (once) before it forks.
        nice: how far the child gives way to others; only used with a host.

    Raises:
        UserError: as the function raised it.
        CallFailed: anything else went wrong there.
    """
    host = os.environ.get(SOCKET_VARIABLE)
    if not host:
        module, _, function = address.partition(":")
        return getattr(importlib.import_module(module), function)(**kwargs)
    request = {"call": address, "kwargs": kwargs, "preload": list(preload), "nice": nice, "environment": _environment()}
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as connection, log.open("ab") as file:
        connection.connect(host)
        line = json.dumps(request).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
        sent = connection.sendmsg([line], rights)
        connection.sendall(line[sent:])
        answer = _read_line(connection)
    return _unpacked(answer, log)


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("ROBUSTRAIN_", "MLFLOW_", "AWS_"))}


def _unpacked(answer: bytes, log: Path) -> Any:
    if not answer:
        raise CallFailed(f"its process was killed; the log is {log}")
    reply = json.loads(answer)
    if "error" not in reply:
        return reply["result"]
    if reply["error"]["kind"] == "UserError":
        raise Said(reply["error"]["text"])
    raise CallFailed(reply["error"]["text"])


class Said(UserError):
    """A `UserError` from another process, with its message as it was said there."""

    def __init__(self, text: str) -> None:
        super().__init__("", remedy="")
        self.args = (text,)


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            return b""
        data += part
        assert len(data) < _LONGEST, "an answer that long should have been an artifact"
    return data


@contextlib.contextmanager
def hosted(folder: Path, preload: Sequence[str] = ()) -> Iterator[str]:
    """Starts a host for the block and yields its socket's path; the host and its children end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = f"/tmp/robustrain-{os.getpid()}.sock"  # a Unix socket's path has at most 107 bytes; a home's may be longer
    Path(path).unlink(missing_ok=True)
    command = [sys.executable, "-m", "components.launch.warm", "--socket", path, "--parent", str(os.getpid())]
    command += ["--preload", *preload]
    with (folder / "host.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env={**_TUNING, **os.environ})
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise CallFailed(f"the warm host did not start; the log is {folder / 'host.log'}")
        yield path
    finally:
        process.terminate()
        process.wait()
        Path(path).unlink(missing_ok=True)


def serve(path: str, preload: Sequence[str], parent: int) -> None:
    """Answers calls until it is told to end (SIGTERM), or `parent`, the process that started it, has died."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    exit_with_parent(parent)
    with socket.socket(socket.AF_UNIX) as listener, _removed(path):
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
        print("ready", flush=True)
        _import(preload)
        while True:
            connection, _ = listener.accept()
            with connection:
                _answer(connection, listener)


@contextlib.contextmanager
def _removed(path: str) -> Iterator[None]:
    """Takes the socket's file away at the end: where whoever started the host was killed, nobody else does."""
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        # What is not installed is not needed by whoever can run without it; who needs it will say so itself.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _answer(connection: socket.socket, listener: socket.socket) -> None:
    data, rights, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4))
    if not rights:
        return
    descriptor = array.array("i", rights[0][2])[0]
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 16)
    request = json.loads(data)
    _import(request["preload"])
    host = os.getpid()
    if os.fork() == 0:
        listener.close()
        _child(connection, descriptor, request, host)
    os.close(descriptor)


def _child(connection: socket.socket, descriptor: int, request: dict[str, Any], host: int) -> None:
    """Runs one call and never returns."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    exit_with_parent(host)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.nice(request["nice"])
    os.environ.update(request["environment"])
    os.environ.pop(SOCKET_VARIABLE, None)
    status = 0
    try:
        module, _, function = request["call"].partition(":")
        reply = {"result": getattr(importlib.import_module(module), function)(**request["kwargs"])}
    except BaseException as error:
        traceback.print_exc()
        kind = "UserError" if isinstance(error, UserError) else type(error).__name__
        text = str(error) if kind == "UserError" else f"{kind}: {error}"
        reply, status = {"error": {"kind": kind, "text": text}}, 1
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(reply).encode() + b"\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Warm host for pipeline steps.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of whoever starts the host")
    parser.add_argument("--preload", nargs="*", default=[])
    options = parser.parse_args()
    serve(options.socket, options.preload, options.parent)
