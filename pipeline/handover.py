"""What a stage's result looks like on its way from the crew (`pipeline.crew`) to KFP's step for that stage.

One small JSON file a stage, written whole when the stage has ended: `{"token": ...}` or `{"error": ..., "user": ...}`.
The folder belongs to one run of the pipeline on this machine, so nothing old can be taken.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from components.errors import UserError
from components.launch.warm import CallFailed, Said
from components.store.digests import write_json

HANDOVER_VARIABLE = "ROBUSTRAIN_HANDOVER"
"""The folder; only set in the steps of a run on this machine."""


def hand_over(folder: Path, stage: str, token: str) -> None:
    """The stage is complete; `token` is what its step hands on."""
    write_json(_path(folder, stage), {"token": token})


def hand_failure(folder: Path, stage: str, error: BaseException) -> None:
    """The stage failed."""
    write_json(_path(folder, stage), {"error": str(error), "user": isinstance(error, UserError)})


def take(folder: Path, stage: str, poll: float = 0.02) -> str:
    """The stage's token; waits until it has ended.

    Raises:
        UserError: as the stage raised it.
        CallFailed: it failed in another way.
    """
    path = _path(folder, stage)
    while not path.exists():
        time.sleep(poll)
    found = json.loads(path.read_text())
    if "token" in found:
        return found["token"]
    raise Said(found["error"]) if found["user"] else CallFailed(found["error"])


def _path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.handed.json"
