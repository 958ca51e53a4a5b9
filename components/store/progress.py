"""Live progress of one stage: a small file that is replaced several times a second at most.

The process that works writes it; the command that waits reads it. Where `ROBUSTRAIN_LIVE` names no folder (on a
cluster) a line goes to the log instead, at most every ten seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIVE_VARIABLE = "ROBUSTRAIN_LIVE"
_FILE_SECONDS, _LOG_SECONDS = 0.2, 10.0


class Progress:
    """Reports how far one stage has come.

    Args:
        stage: the stage's name; also the file's name.
        folder: where live files lie; the environment's when not given.
    """

    def __init__(self, stage: str, folder: Path | None = None) -> None:
        named = str(folder or os.environ.get(LIVE_VARIABLE, ""))
        self.path = Path(named) / f"{stage}.json" if named else None
        self.stage = stage
        self._last = 0.0
        self._rate = _Rate()

    def report(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Says that `done` of `total` units of `phase` are done. Cheap: most calls return at once."""
        now = time.monotonic()
        ended = done >= total
        if not ended and now - self._last < (_FILE_SECONDS if self.path else _LOG_SECONDS):
            return
        self._last = now
        rate = self._rate.of(phase, done, now)
        self._write(state="running", phase=phase, done=done, total=total, unit=unit, rate=rate, note=note)

    def set_state(self, state: str, **facts: Any) -> None:
        """Says where the stage stands: `running`, `complete`, `reused`, `failed`; always written."""
        self._write(state=state, **facts)

    def info(self, text: str) -> None:
        """One line for people, kept beside the live file until the run has ended; to the log where there is none."""
        print(text, file=sys.stderr, flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError), messages_path(self.path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(text) + "\n")

    def _write(self, **facts: Any) -> None:
        if self.path is None:
            print(json.dumps({"stage": self.stage, **facts}), flush=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        # A display that cannot be written must not stop a training that can.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps({"stage": self.stage, "time": time.time(), **facts}))
            os.replace(part, self.path)


def messages_path(live: Path) -> Path:
    """Where what a stage said lies, given its live file."""
    return live.with_suffix(".messages")


def read_messages(live: Path) -> list[str]:
    """What a stage has said so far, in order; a line that is still being written is left out."""
    try:
        lines = messages_path(live).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class _Rate:
    """Units a second since the phase began."""

    def __init__(self) -> None:
        self._phase, self._start, self._first = "", 0.0, 0

    def of(self, phase: str, done: int, now: float) -> float:
        if phase != self._phase or done < self._first:
            self._phase, self._start, self._first = phase, now, done
        spent = now - self._start
        return (done - self._first) / spent if spent > 0 else 0.0
