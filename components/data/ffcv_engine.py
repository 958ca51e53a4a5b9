"""The FFCV engine: FFCV's loader and its compiled pipeline, driven by a thread of ours that cannot hang the run.

FFCV's own epoch iterator leaves the caller waiting for ever when its thread dies, hands out buffers that the next batch
overwrites, leaks a thread when an epoch is left early, and sets torch's thread count for the whole process. This one
does none of that; the decoding itself, its order and its memory are FFCV's.
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

from components.data.beton_reader import BetonFile, Pixels, refuse
from components.data.native_engine import Geometry, Stream
from components.data.randomness import sample_keys
from components.data.sampler import Indices

AHEAD = 3
"""Batches that are decoded before they are asked for."""

_POLL_SECONDS = 0.2

Decoded = tuple[Pixels, npt.NDArray[np.bool_]]
"""Images of a batch, and which of them could not be decoded."""


@functools.cache
def why_not() -> str:
    """Why FFCV cannot be used here; an empty string where it can."""
    try:
        with torch_threads_kept():
            importlib.import_module("ffcv.loader")
    # Whatever goes wrong while it is imported (a missing library, another NumPy) is the answer to the question.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Puts torch's number of threads back: importing FFCV sets it to 1, making a loader to the loader's."""
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
        threads: FFCV's decoding threads; at most as many as numba has.
    """

    name = "ffcv"

    def __init__(self, file: BetonFile, geometry: Geometry, batch_size: int, threads: int) -> None:
        # FFCV's decoder writes as many pixels as the JPEG has, wherever the buffer ends.
        file.check_jpeg_headers()
        self.file, self.geometry = file, geometry
        with torch_threads_kept():
            numba, ffcv, ours = (
                importlib.import_module(name) for name in ("numba", "ffcv.loader", "components.data.ffcv_decoder")
            )
            self.threads = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
            self.loader = ffcv.Loader(
                str(file.path),
                batch_size=batch_size,
                num_workers=self.threads,
                os_cache=True,
                order=ours.GivenOrder(),
                seed=0,
                pipelines={"image": [ours.PureCropDecoder(geometry)], "label": None},
                drop_last=False,
            )

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream:
        """The images (uint8, (B, resolution, resolution, 3)) of each batch, with its indices, in order."""
        producer = _Producer(self, batches, epoch)
        producer.start()
        try:
            for indices in batches:
                images, failed = producer.next()
                if failed.any():
                    refuse(self.file.path, f"sample {indices[failed][0]} cannot be decoded")
                yield images, indices
        finally:
            producer.stop()


class _Producer(threading.Thread):
    """Runs FFCV's compiled pipeline over the batches of one epoch and hands out copies.

    Whatever ends the thread is raised where the batch is waited for.
    """

    def __init__(self, engine: FfcvEngine, batches: Sequence[Indices], epoch: int) -> None:
        super().__init__(daemon=True, name="ffcv-loader")
        self._engine, self._batches, self._epoch = engine, batches, epoch
        self._ready: queue.Queue[Decoded] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def next(self) -> Decoded:
        """The next batch."""
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
        """In the thread: decodes until the epoch ends or is left."""
        try:
            self._decode_all()
        except BaseException as error:
            self._error = error

    def _decode_all(self) -> None:
        # numba's number of threads belongs to the calling thread; FFCV would set torch's along with it.
        sys.modules["numba"].set_num_threads(self._engine.threads)
        loader, side = self._engine.loader, self._engine.geometry.resolution
        memory = loader.graph.allocate_memory(loader.batch_size, 1)
        with loader.memory_manager.schedule_epoch([]) as context:
            for indices in self._batches:
                if self._stopped.is_set():
                    return
                if len(indices):
                    self._hand_out(_decoded(loader, context.state, memory, sample_keys(indices, self._epoch)))
                else:
                    self._hand_out((np.empty((0, side, side, 3), np.uint8), np.zeros(0, np.bool_)))

    def _hand_out(self, batch: Decoded) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(batch, timeout=_POLL_SECONDS)
                return


def _decoded(loader: Any, storage: Any, memory: dict[str, dict[int, Any]], keys: np.ndarray) -> Decoded:
    """Copies of one batch's images and flags after the stages that FFCV compiled."""
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
