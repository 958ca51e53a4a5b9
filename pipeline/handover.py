"""What a stage's result looks like on its way from the crew (`pipeline.crew`) to KFP's step for that stage.

One small JSON file a stage, written whole when the stage has ended: `{"token": ...}` or `{"error": ..., "user": ...}`.
The folder belongs to one run of the pipeline on this machine, so nothing old can be taken. While that run lives it
holds a lock there, so that a step whose run was killed does not wait for ever.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path

from components.errors import UserError
from components.files import write_json
from components.launch.warm import CallFailed, Said
from components.store.locks import file_lock, is_held

HANDOVER_VARIABLE = "ROBUSTRAIN_HANDOVER"
"""The folder; only set in the steps of a run on this machine."""
_LOCK = "conductor.lock"


def handing_over(folder: Path) -> AbstractContextManager[None]:
    """Around everything that is handed over: says, for as long as this process lives, that waiting makes sense."""
    return file_lock(folder / _LOCK)


def hand_over(folder: Path, stage: str, token: str) -> None:
    """The stage is complete; `token` is what its step hands on."""
    write_json(_path(folder, stage), {"token": token})


def hand_failure(folder: Path, stage: str, error: BaseException) -> None:
    """The stage failed, or will never begin because of this error."""
    write_json(_path(folder, stage), {"error": str(error), "user": isinstance(error, UserError)})


def take(folder: Path, stage: str, poll: float = 0.02) -> str:
    """The stage's token; waits until it has ended.

    Raises:
        UserError: as the stage raised it.
        CallFailed: it failed in another way, or the run it belongs to was killed.
    """
    path, lock = _path(folder, stage), folder / _LOCK
    while not path.exists():
        if lock.exists() and not is_held(lock):
            raise CallFailed("the run that this step belongs to has ended")
        time.sleep(poll)
    found = json.loads(path.read_text())
    if "token" in found:
        return found["token"]
    raise Said(found["error"]) if found["user"] else CallFailed(found["error"])


def _path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.handed.json"
