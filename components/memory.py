"""Keeps freed memory in the process instead of giving it back after every layer.

glibc returns large blocks to the kernel as soon as they are free and faults the same pages in again for the next
layer's output. Measured on two cores with a 0.34 M parameter ConvNeXt, 64 images of 32 px, one thread: forward 22 ->
15 ms, forward and backward 40 -> 34 ms, page faults in 80 passes 119,000 -> 3,600. Values do not change.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMIT = 1 << 30
"""Blocks up to 1 GiB stay; a process gives them back when it ends."""


def keep_freed_memory() -> bool:
    """Sets glibc's limits for this process and its children; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        return bool(set_option(_MMAP_THRESHOLD, _LIMIT) and set_option(_TRIM_THRESHOLD, _LIMIT))
    return False
