"""Starts a Ray cluster on this machine, for a stage that needs several workers and was not submitted to a cluster.

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
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

_LOGGER = logging.getLogger(__name__)

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
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
            return
        except Exception as error:  # Ray raises bare ones here
            ray.shutdown()
            if not left or isinstance(error, ValueError | TypeError):
                raise
            _LOGGER.warning("Ray did not start (%s); trying again", error)
