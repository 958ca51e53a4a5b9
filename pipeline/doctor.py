"""Checks this machine for `robustrain doctor`: what is installed, what is missing, and how to install it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.store.settings import StorageSettings

NEEDED_GB = 2.0
"""Free space (GB) that a run needs: the home of a quickstart takes about 0.2 GB, the rest is for a data set."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the part of the machine that was checked.
        state: `ok`, `warning` (runs are possible without it) or `error` (runs are not possible).
        fact: what was found.
        remedy: what to do; empty if nothing needs to be done.
    """

    what: str
    state: str
    fact: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return dict(vars(self))


def examine(storage: StorageSettings) -> list[Finding]:
    """Runs all checks, in a fixed order."""
    checks: list[Callable[[StorageSettings], Finding]] = [
        _python,
        _training,
        _ffcv,
        _turbojpeg,
        _gpu,
        _space,
        _home,
        _tracking,
    ]
    return [check(storage) for check in checks]


def lacking(storage: StorageSettings) -> Finding | None:
    """The first finding that prevents a run on this machine, or None. Quick, because every run begins with it."""
    checks: list[Callable[[StorageSettings], Finding]] = [_training, _home, _space]
    # Without the training packages a machine can still plan and submit: `doctor` reports a warning, a run cannot start.
    return next((found for found in (check(storage) for check in checks) if found.state != "ok"), None)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _python(storage: StorageSettings) -> Finding:
    cores = len(os.sched_getaffinity(0))
    return Finding("machine", "ok", f"Python {platform.python_version()}, {cores} cores")


def _training(storage: StorageSettings) -> Finding:
    packages = ("torch", "timm", "ray", "pyautoattack", "safetensors")
    missing = [name for name in packages if not _version(name)]
    if missing:
        remedy = "pip install -c requirements.lock '.[train]'"
        return Finding(
            "training",
            "warning",
            f"not installed: {', '.join(missing)}; this machine can plan, submit and read results",
            remedy,
        )
    return Finding("training", "ok", ", ".join(f"{name} {_version(name)}" for name in packages))


def _ffcv(storage: StorageSettings) -> Finding:
    remedy = "run `make ffcv` as root (it installs Debian packages and builds one extension)"
    if not importlib.util.find_spec("ffcv"):
        return Finding("ffcv", "warning", "not installed; the native loader reads the same files", remedy)
    # In a process of its own: a library that its extension links may be missing, or may crash the process.
    tried = subprocess.run([sys.executable, "-P", "-c", "import ffcv"], capture_output=True, text=True, check=False)
    if tried.returncode:
        cause = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
        return Finding(
            "ffcv", "warning", f"cannot be imported ({cause}); the native loader reads the same files", remedy
        )
    return Finding("ffcv", "ok", f"{_version('ffcv')}; `loader: ffcv` and `auto` can use it")


def _turbojpeg(storage: StorageSettings) -> Finding:
    import ctypes.util

    if ctypes.util.find_library("turbojpeg"):
        return Finding("libjpeg-turbo", "ok", "found")
    return Finding("libjpeg-turbo", "warning", "not found", "install Debian's libturbojpeg0 for the fast JPEG decoder")


def _gpu(storage: StorageSettings) -> Finding:
    tool = shutil.which("nvidia-smi")
    return Finding("gpu", "ok", "nvidia-smi found" if tool else "none; everything runs on the CPU in fp32")


def _space(storage: StorageSettings) -> Finding:
    at = _existing_parent(storage.home)
    free = shutil.disk_usage(at).free / 1e9
    if free < NEEDED_GB:
        remedy = "free some space, or set ROBUSTRAIN_HOME to another disk"
        return Finding("space", "error", f"{free:.1f} GB free at {at}, {NEEDED_GB:.0f} GB needed", remedy)
    return Finding("space", "ok", f"{free:.0f} GB free at {at}")


def _home(storage: StorageSettings) -> Finding:
    at, remedy = _existing_parent(storage.home), "set ROBUSTRAIN_HOME to a folder of yours"
    if not at.is_dir():
        return Finding("home", "error", f"{at} is a file, not a folder", remedy)
    if os.access(at, os.W_OK):
        return Finding("home", "ok", str(storage.home))
    return Finding("home", "error", f"{at} cannot be written", remedy)


def _existing_parent(path: Path) -> Path:
    """The path itself if it exists, else the nearest parent that does."""
    while not path.exists():
        path = path.parent
    return path


def _tracking(storage: StorageSettings) -> Finding:
    from components.store.tracking_server import require_server, without_password

    try:
        require_server(storage.tracking_uri)
    except UserError as error:
        return Finding("tracking", "error", f"{error.what}: {without_password(storage.tracking_uri)}", error.remedy)
    return Finding("tracking", "ok", without_password(storage.tracking_uri))
