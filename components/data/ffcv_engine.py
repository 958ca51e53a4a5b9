"""The FFCV engine: FFCV's loader and its compiled pipeline, run by a thread that cannot block the training for ever.

FFCV's own epoch iterator waits for ever when its thread dies, returns buffers that the next batch overwrites, leaks a
thread when an epoch is left early, and sets torch's thread count for the whole process. This engine has none of these
faults; the decoding, its order and its memory are FFCV's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.data.beton_reader import BetonFile, Pixels, raise_damaged
from components.data.native_engine import Geometry, Stream
from components.data.randomness import sample_keys
from components.data.sampler import Indices

DECODED_AHEAD = 3
"""Batches that are decoded before they are needed."""

_POLL_SECONDS = 0.2

Decoded = tuple[Pixels, npt.NDArray[np.bool_]]
"""Images of a batch, and a flag for each one that could not be decoded."""


@functools.cache
def import_error() -> str:
    """Returns why FFCV does not import on this machine; an empty string if it does."""
    try:
        with preserve_torch_threads():
            importlib.import_module("ffcv.loader")
    # Any failure of the import (a missing library, another NumPy) is a reason not to use FFCV.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def preserve_torch_threads() -> Iterator[None]:
    """Restores torch's number of threads: importing FFCV sets it to 1, making a loader sets it to the loader's."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FfcvEngine:
    """Decodes batches of one file with FFCV; the first batch waits 10 to 18 s for the compiler.

    Args:
        batch_size: the most samples in one of this rank's batches.
        num_threads: FFCV's decoding threads; at most as many as numba has.
    """

    name = "ffcv"

    def __init__(self, file: BetonFile, geometry: Geometry, batch_size: int, num_threads: int) -> None:
        # FFCV's decoder writes as many pixels as the JPEG has, even beyond the end of the buffer.
        file.check_jpeg_headers()
        self.file, self.geometry = file, geometry
        with preserve_torch_threads():
            numba, ffcv, decoder = (
                importlib.import_module(name) for name in ("numba", "ffcv.loader", "components.data.ffcv_decoder")
            )
            self.num_threads = max(1, min(num_threads, numba.config.NUMBA_NUM_THREADS))
            self.loader = ffcv.Loader(
                str(file.path),
                batch_size=batch_size,
                num_workers=self.num_threads,
                os_cache=True,
                order=decoder.PlaceholderOrder(),
                seed=0,
                pipelines={"image": [decoder.SeededCropDecoder(geometry)], "label": None},
                drop_last=False,
            )

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream:
        """Yields the images (uint8, (B, resolution, resolution, 3)) of each batch, with its indices, in order."""
        producer = _Producer(self, batches, epoch)
        producer.start()
        try:
            for indices in batches:
                images, failed = producer.next()
                if failed.any():
                    raise_damaged(self.file.path, f"sample {indices[failed][0]} cannot be decoded")
                yield images, indices
        finally:
            producer.stop()


class _Producer(threading.Thread):
    """Runs FFCV's compiled pipeline over the batches of one epoch and passes copies on through a queue.

    An exception that ends the thread is raised in the caller that waits for the batch.
    """

    def __init__(self, engine: FfcvEngine, batches: Sequence[Indices], epoch: int) -> None:
        super().__init__(daemon=True, name="ffcv-loader")
        self._engine, self._batches, self._epoch = engine, batches, epoch
        self._ready: queue.Queue[Decoded] = queue.Queue(DECODED_AHEAD)
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def next(self) -> Decoded:
        """Waits for the next batch and returns it."""
        while True:
            try:
                return self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not self.is_alive() and self._ready.empty():
                    raise RuntimeError("FFCV's loader thread ended before the epoch did") from self._error

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Runs in the thread: decodes until the epoch ends or is left."""
        try:
            self._decode_all()
        except BaseException as error:
            self._error = error

    def _decode_all(self) -> None:
        # numba's number of threads belongs to the calling thread; FFCV would set torch's along with it.
        sys.modules["numba"].set_num_threads(self._engine.num_threads)
        loader, side = self._engine.loader, self._engine.geometry.resolution
        memory = loader.graph.allocate_memory(loader.batch_size, 1)
        with loader.memory_manager.schedule_epoch([]) as context:
            for indices in self._batches:
                if self._stopped.is_set():
                    return
                if len(indices):
                    self._put(_decode(loader, context.state, memory, sample_keys(indices, self._epoch)))
                else:
                    self._put((np.empty((0, side, side, 3), np.uint8), np.zeros(0, np.bool_)))

    def _put(self, batch: Decoded) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(batch, timeout=_POLL_SECONDS)
                return


def _decode(loader: Any, storage: Any, memory: dict[str, dict[int, Any]], keys: np.ndarray) -> Decoded:
    """Runs the stages that FFCV compiled on one batch; returns copies of its images and flags."""
    code, outputs = loader.code
    values = {"batch_indices": keys, "storage_state": storage, "metadata": loader.reader.metadata}
    for kind, prefix in (("operation", "memory"), ("shared", "shared_memory")):
        for node, buffers in memory[kind].items():
            values[f"{prefix}_{node}"] = _first_rows(buffers, len(keys))
    for stage, defined in code:
        for node, result in zip(defined, stage(**values), strict=True):
            values[f"result_{node}"] = result
    (decoder,) = (buffers for buffers in memory["operation"].values() if isinstance(buffers, tuple))
    failed = _first_rows(decoder, len(keys))[2]
    return np.array(values[f"result_{outputs[0]}"]), failed[:, 0] != 0


def _first_rows(buffers: Any, count: int) -> Any:
    if isinstance(buffers, tuple):
        return tuple(_first_rows(buffer, count) for buffer in buffers)
    return None if buffers is None else buffers[0][:count]
