"""Leaves the process as it was found: what an attack by pyautoattack 0.2.0 overwrites is put back.

The library reseeds torch's global generators before every batch, removes whatever tracer is installed (debugger,
coverage), and writes into every parameter's `.grad` where parameters want gradients.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

import torch
from pyautoattack import checks
from torch import nn

LOGGER = "auto-attack"
"""Name of the library's logger."""


@contextlib.contextmanager
def undisturbed() -> Iterator[list[str]]:
    """Runs attacks in full fp32 without a trace in the process; yields the list of the library's warnings.

    Restored afterwards: torch's generators (CPU and every GPU), the trace function, the counters of the library's
    check for dynamic defences (module globals that never go back to zero), the TF32 switches, and the logger's set-up.
    """
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        _tracer_kept(),
        _counters_reset(),
        _full_precision(),
        _warnings_caught() as warnings,
    ):
        yield warnings


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that want no gradient; modes and flags are put back.

    Without this FAB's `.backward()` fills every `.grad` and takes 1.6 times as long.
    """
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        for name, module in model.named_modules():
            module.training = modes[name]


@contextlib.contextmanager
def _tracer_kept() -> Iterator[None]:
    tracer = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(tracer)


@contextlib.contextmanager
def _counters_reset() -> Iterator[None]:
    before = dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        checks.funcs.update(before)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages:
            self.messages.append(message)


@contextlib.contextmanager
def _warnings_caught() -> Iterator[list[str]]:
    logger, collector = logging.getLogger(LOGGER), _Collector()
    kept = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate, level = kept
        logger.setLevel(level)
