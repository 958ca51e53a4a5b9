"""Requests to end (SIGTERM, Ctrl-C), deferred until the weights are consistent and a checkpoint is taken."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from components.errors import Terminated

_ONE_REQUEST_SECONDS = 1.0
"""Signals this close together are one request: ending a whole session signals a process and its parent, whose death
signals the process again."""


class StopRequests:
    """While entered, the first SIGTERM or SIGINT is only recorded; a second, later one has its usual effect.

    Outside the main thread, where Python runs no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers_before[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_handlers()

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
        elif now - self._since >= _ONE_REQUEST_SECONDS:
            self._restore_handlers()
            signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        while self._handlers_before:
            signal.signal(*self._handlers_before.popitem())

    def raise_if_requested(self) -> None:
        """Raises the recorded request, if any: KeyboardInterrupt for Ctrl-C, `Terminated` otherwise."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise Terminated
