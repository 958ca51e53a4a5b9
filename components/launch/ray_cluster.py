"""A Ray of our own on this machine, for a stage that wants several workers and was not submitted to a cluster.

Ray 2 waits 30 s for its processes, a time that is fixed in its code (`ray._private.node`); a busy machine needs longer
now and then, so a start that timed out is tried again. It also puts a handler of its own in the place of ours for
SIGTERM, which ends the process without the checkpoint that ours asks for; ours is put back.

Some of Ray's processes listen on all of the machine's addresses, whatever they are told. What keeps others out is a
token: Ray turns authentication on for clusters that it starts, reads the token once a process, and without one in the
environment leaves a readable one in the home folder. So all starts of a process use one token, which only its
environment holds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_TRIES = 3
_PATIENCE = {"RAY_gcs_server_port_wait_time_s": "120"}


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Puts this process's handler for SIGTERM back after `ray.init`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_ray(**options: Any) -> None:
    """`ray.init` for a new cluster of this process, which only those who have its token can use.

    Args:
        options: of `ray.init`.

    Raises:
        Exception: as Ray raises it, after three starts that timed out.
    """
    # Before ray is imported: with RAY_AUTH_MODE set it would not notice the token where it was imported earlier.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import ray

    for left in reversed(range(_TRIES)):
        try:
            with own_signals():
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
            return
        except Exception as error:  # Ray raises bare ones here
            ray.shutdown()
            if not left or isinstance(error, ValueError | TypeError):
                raise
            print(f"warning: Ray did not start ({error}); trying again", file=sys.stderr, flush=True)
