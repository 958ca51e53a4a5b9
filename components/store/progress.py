"""Live progress of one stage: a small JSON file, replaced at most five times a second, and the stage's messages.

The stage's process writes them and the command that waits reads them. Without a folder in `ROBUSTRAIN_LIVE` (on a
cluster) progress goes to the log instead, at most every ten seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from components.files import write_atomically

LIVE_VARIABLE = "ROBUSTRAIN_LIVE"
_FILE_SECONDS, _LOG_SECONDS = 0.2, 10.0

KEPT_FOLDERS = 20
"""Live folders in a home, with the run's log and the reports of its stages; older ones are removed."""
_FOLDER = re.compile(r"\d{8}-\d{6}(-\d+)?")

_log = logging.getLogger(__name__)


class Progress:
    """Reports the progress of one stage.

    Args:
        stage: the stage's name; the file is `STAGE.json`.
        folder: folder of the live files; by default the one in `ROBUSTRAIN_LIVE`.
    """

    def __init__(self, stage: str, folder: Path | None = None) -> None:
        name = str(folder or os.environ.get(LIVE_VARIABLE, ""))
        self.path = Path(name) / f"{stage}.json" if name else None
        self.stage = stage
        self._last = 0.0
        self._rate = _Rate()

    def report(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Reports that `done` of `total` units of a phase are done. Cheap: most calls return at once."""
        now = time.monotonic()
        ended = done >= total
        if not ended and now - self._last < (_FILE_SECONDS if self.path else _LOG_SECONDS):
            return
        self._last = now
        rate = self._rate.of(phase, done, now)
        self._write(state="running", phase=phase, done=done, total=total, unit=unit, rate=rate, note=note)

    def set_state(self, state: str, **details: Any) -> None:
        """Reports the stage's state: `waiting`, `running`, `complete`, `reused` or `failed`. Always written."""
        self._write(state=state, **details)

    def info(self, text: str) -> None:
        """Logs one line for the user and keeps it in the stage's messages file, which the live display shows."""
        _log.info("%s: %s", self.stage, text)
        self._keep(text)

    def warn(self, text: str) -> None:
        """Does the same for a warning."""
        _log.warning("%s: %s", self.stage, text)
        self._keep(f"warning: {text}")

    def _keep(self, text: str) -> None:
        if self.path is not None:
            # As below: a display that cannot be written must not stop a training.
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with messages_path(self.path).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(text) + "\n")

    def _write(self, **report: Any) -> None:
        if self.path is None:
            _log.info("%s", json.dumps({"stage": self.stage, **report}))
            return
        text = json.dumps({"stage": self.stage, "time": time.time(), **report})
        # A display that cannot be written must not stop a training.
        with contextlib.suppress(OSError):
            write_atomically(self.path, text, fsync=False)


def new_live_folder(home: Path) -> Path:
    """Makes the live folder of a run, `live/<time>`, and removes the oldest ones. The caller holds the home's lock.

    The folder is always new: a clock that was set back shows the same second twice, and a run must not take another
    run's reports for its own.
    """
    parent = home / "live"
    parent.mkdir(parents=True, exist_ok=True)
    folder = first = parent / time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    folder.mkdir()
    others = sorted(path for path in parent.iterdir() if _FOLDER.fullmatch(path.name) and path != folder)
    for old in others[: max(0, len(others) + 1 - KEPT_FOLDERS)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def messages_path(live: Path) -> Path:
    """Returns the path of a stage's messages, given its live file."""
    return live.with_suffix(".messages")


def read_messages(live: Path) -> list[str]:
    """Returns the messages of a stage so far, in order, without a line that is still being written."""
    try:
        lines = messages_path(live).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class _Rate:
    """Units per second since the phase began."""

    def __init__(self) -> None:
        self._phase, self._start, self._first = "", 0.0, 0

    def of(self, phase: str, done: int, now: float) -> float:
        if phase != self._phase or done < self._first:
            self._phase, self._start, self._first = phase, now, done
        spent = now - self._start
        return (done - self._first) / spent if spent > 0 else 0.0
