"""Requests to end (SIGTERM, Ctrl-C), held back until the weights are consistent and a checkpoint is taken."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from components.errors import Terminated

_ONE_REQUEST_SECONDS = 1.0
"""Signals so close together are one request: who ends a whole session signals a process and its parent, whose death
signals it again."""


class StopRequests:
    """While entered, the first SIGTERM or SIGINT is only noted; a later second one acts as it did before.

    Outside the main thread, where Python runs no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
        elif now - self._since >= _ONE_REQUEST_SECONDS:
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def obey(self) -> None:
        """Raises what the signal would have raised: KeyboardInterrupt for Ctrl-C, `Terminated` otherwise."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise Terminated
