"""Connects to the Ray cluster that `RAY_ADDRESS` names, or starts one on this machine.

Ray 2 waits 30 s for its processes, a time that is fixed in its code (`ray._private.node`). A busy machine sometimes
needs longer, so a start that timed out is repeated. Ray also replaces our handler for SIGTERM by one that ends the
process without the checkpoint that ours asks for, so ours is restored.

Some of Ray's processes listen on all of the machine's addresses, whatever address is configured. A token keeps others
out: Ray turns authentication on for clusters that it starts and reads the token once per process; without one in the
environment it writes a readable one to the home folder. So all starts of a process use one token that only its
environment holds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from components.errors import UserError

if TYPE_CHECKING:
    from ray.job_config import JobConfig

_LOGGER = logging.getLogger(__name__)

RAY_VARIABLE = "RAY_ADDRESS"
_ADDRESS = re.compile(r"(?:[a-z]+://)?\[?([^/\[\]]+?)\]?:(\d+)/?")
"""`host:port`, also after `ray://`; not `auto` and `local`."""
_ANSWER_SECONDS = 5.0
_TRIES = 3
_PATIENCE = {"RAY_gcs_server_port_wait_time_s": "120"}


@contextlib.contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Restores this process's handler for SIGTERM after `ray.init`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _ImportPath(list[str]):
    """Folders that Ray's workers import from: of those that Ray adds, only the ones that this process imports from."""

    def extend(self, folders: Iterable[str]) -> None:
        super().extend(folder for folder in folders if folder in sys.path)


def job_config() -> JobConfig:
    """Returns the `job_config` for `ray.init`, with which workers do not import from the working folder.

    Ray 2.60 puts the driver's working folder first on the workers' path. A user's `random.py` there would be run.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _ImportPath()
    return config


def require_ray() -> None:
    """Checks that something listens at `RAY_ADDRESS`.

    Ray itself waits for a cluster that has ended: 876 s without a message.

    Raises:
        UserError: nothing does.
    """
    value = os.environ.get(RAY_VARIABLE, "")
    address = _ADDRESS.fullmatch(value)
    if not address:
        return
    try:
        socket.create_connection((address[1], int(address[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(value, error) from error


def _no_ray(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at this address ({error})",
        where=RAY_VARIABLE,
        value=address,
        remedy="start the cluster, correct the variable, or unset it to use this machine alone",
    )


def connect_ray(**options: Any) -> None:
    """Connects this process to the cluster that `RAY_ADDRESS` names.

    Args:
        options: arguments of `ray.init`.

    Raises:
        UserError: no cluster answers there.
    """
    import ray

    require_ray()
    address = os.environ[RAY_VARIABLE]
    try:
        with keep_sigterm_handler():
            ray.init(address=address, job_config=job_config(), **options)
    except ConnectionError as error:
        raise _no_ray(address, error) from error


def start_ray(**options: Any) -> None:
    """Starts a new Ray cluster of this process, which can be used only with its token.

    Args:
        options: arguments of `ray.init`.

    Raises:
        Exception: Ray's own, after three starts that failed.
    """
    # Before ray is imported: if RAY_AUTH_MODE is set, Ray does not see a token that is set after its import.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import ray

    for left in reversed(range(_TRIES)):
        try:
            with keep_sigterm_handler():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    job_config=job_config(),
                    **options,
                )
            return
        except Exception as error:  # Ray raises bare ones here
            ray.shutdown()
            if not left or isinstance(error, ValueError | TypeError):
                raise
            _LOGGER.warning("Ray did not start (%s); trying again", error)
