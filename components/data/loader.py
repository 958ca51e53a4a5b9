"""Batches of an encoded data set: the same order and the same pixels from either engine, on any number of ranks.

`ffcv` reads with FFCV's loader: fast on large sets, but every loader compiles for 10 to 18 s first. `native` reads with
NumPy, libjpeg-turbo and threads and starts at once. `auto` uses FFCV for large training sets if it imports.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from components.data.augment import Augmentation
from components.data.beton_reader import BetonFile
from components.data.crop import CenterCrop, RandomResizedCrop
from components.data.jpeg import decoder_name
from components.data.manifest import DataManifest
from components.data.native_engine import Geometry, Images, NativeEngine, PendingBatch, Stream, in_order, pieces
from components.data.randomness import MAX_EPOCH, sample_keys
from components.data.sampler import BatchSampler, Indices, checked_indices
from components.errors import UserError

if TYPE_CHECKING:
    from components.store.objects import ObjectStore

EngineName = Literal["auto", "ffcv", "native"]

WORTH_FFCV = 50_000
"""Samples from which `auto` uses FFCV; for fewer, its compilation costs more time than it saves."""

AUGMENTED_AHEAD = 2
"""Batches that are augmented before they are needed."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch; the arrays belong to the caller.

    `images` is uint8 (B, H, W, 3) RGB, or float32 in units of 0..1 if the augmentation can leave that range (random
    erasing as in the paper's released code). `labels` and `indices` are int64 (B,); an index is the sample's row in the
    encoded file.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]


class Engine(Protocol):
    """Turns batches of indices into batches of images."""

    name: str

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream: ...


class Epoch:
    """The batches of one epoch: an iterator, and a context that stops all work for the epoch when it is left early."""

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the epoch and all work for it. Has no effect after the last batch."""
        self._batches.close()


class Loader:
    """Gives the batches of a split, epoch by epoch; `open_loader` makes it.

    Attributes:
        engine: the engine in use, `ffcv` or `native`.
        jpeg_decoder: `libjpeg-turbo`, `opencv` (its pixels differ: record it with the results), or `none` if no image
            is stored as a JPEG.
        num_batches: batches in an epoch, the same on every rank.
        num_samples: samples in an epoch before incomplete batches are dropped, over all ranks.
    """

    def __init__(
        self,
        file: BetonFile,
        sampler: BatchSampler,
        engine: Engine,
        augment: Augmentation | None,
        pool: ThreadPoolExecutor,
        num_threads: int,
    ) -> None:
        self.engine, self.jpeg_decoder = engine.name, decoder_name() if file.has_jpegs else "none"
        self.num_batches, self.num_samples = sampler.num_batches, len(sampler.indices)
        self._file, self._sampler, self._engine, self._augment = file, sampler, engine, augment
        self._pool, self._num_threads = pool, num_threads

    def epoch(self, epoch: int, start_batch: int = 0) -> Epoch:
        """Returns the batches of an epoch from `start_batch` (0 to num_batches) on.

        Order and pixels are pure functions of the seed, the epoch and the sample, so a run that continues at batch k
        gets the same batches as an uninterrupted one.

        Raises:
            UserError: while iterating, when an image turns out to be damaged.
        """
        assert 0 <= epoch <= MAX_EPOCH, epoch
        assert 0 <= start_batch <= self.num_batches, start_batch
        return Epoch(self._batches(epoch, start_batch))

    def _batches(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        decoded = self._engine.stream(self._sampler.batches(epoch, start_batch), epoch)
        changed = self._augmented(decoded, self._augment, epoch) if self._augment else decoded
        try:
            for images, indices in changed:
                yield Batch(images, self._file.labels[indices], indices)
        finally:
            changed.close()
            decoded.close()

    def _augmented(self, decoded: Stream, augment: Augmentation, epoch: int) -> Stream:
        """Applies the augmentation on the loader's threads, some batches ahead, in order."""

        def start(images: Images, indices: Indices) -> PendingBatch:
            out = np.empty(images.shape, augment.dtype)
            keys = sample_keys(indices, epoch)
            futures = [
                self._pool.submit(augment.fill_batch, out[piece], images[piece], keys[piece])
                for piece in pieces(images, self._num_threads)
            ]
            return out, indices, futures

        return in_order((start(images, indices) for images, indices in decoded), AUGMENTED_AHEAD)

    def close(self) -> None:
        """Ends the threads. The threads of a loader that is not closed end with the process."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def open_loader(
    manifest: DataManifest,
    split: str,
    objects: ObjectStore,
    *,
    batch_size: int,
    resolution: int,
    seed: int,
    train: bool,
    engine: EngineName = "auto",
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 2,
    indices: Sequence[int] | Indices | None = None,
    order: Literal["random", "fixed", "sequential"] | None = None,
    crop: RandomResizedCrop | CenterCrop | None = None,
    hflip: float | None = None,
    augment: Augmentation | None = None,
    drop_last: bool | None = None,
) -> Loader:
    """Opens a split of an encoded data set.

    Args:
        objects: the store that has the files; it verifies their sha256.
        batch_size: B, samples in a global batch; rank r of w gets rows r*B/w .. (r+1)*B/w of each.
        resolution: pixels of the square output.
        seed: of the order, crops and flips.
        train: chooses the defaults of the options below that are None. True: random order, random crop, hflip 0.5, and
            an incomplete last batch is dropped. False: sequential order, centre crop, no flip, nothing dropped.
        engine: `auto` uses FFCV for large training sets if it imports.
        rank, world_size: this rank, and the number of ranks.
        num_threads: decoding threads of this rank.
        indices, order: the samples to use, all if None; see `BatchSampler`.
        hflip: probability of a horizontal flip.
        augment: heavy augmentation after crop and flip.

    Raises:
        UserError: the file is damaged, FFCV is asked for and does not import, the ranks do not divide the batch, no
            batch is full and `drop_last` is set, or an index is outside the set.
    """
    stored = manifest.split(split)
    file = BetonFile(objects.get(stored.object_ref), num_samples=stored.num_images, num_classes=manifest.num_classes)
    geometry = Geometry(
        resolution,
        seed,
        crop=crop or (RandomResizedCrop() if train else CenterCrop()),
        hflip=(0.5 if train else 0.0) if hflip is None else hflip,
    )
    sampler = BatchSampler(
        checked_indices(indices, len(file)),
        batch_size,
        seed=seed,
        order=order or ("random" if train else "sequential"),
        drop_last=train if drop_last is None else drop_last,
        rank=rank,
        world_size=world_size,
    )
    _refuse_empty(sampler, f"{manifest.name}/{split}")
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader")
    reader = _choose_engine(engine, file, geometry, sampler, pool, num_threads)
    return Loader(file, sampler, reader, augment, pool, num_threads)


def _choose_engine(
    wanted: EngineName,
    file: BetonFile,
    geometry: Geometry,
    sampler: BatchSampler,
    pool: ThreadPoolExecutor,
    num_threads: int,
) -> Engine:
    # FFCV has no antialiased bicubic resize, so evaluation always uses the native engine.
    large = len(sampler.indices) >= WORTH_FFCV
    if isinstance(geometry.crop, RandomResizedCrop) and (wanted == "ffcv" or (wanted == "auto" and large)):
        from components.data.ffcv_engine import FfcvEngine, import_error

        cause = import_error()
        if not cause:
            return FfcvEngine(file, geometry, sampler.batch_size // sampler.world_size, num_threads)
        if wanted == "ffcv":
            raise UserError(
                f"FFCV does not import ({cause})",
                where="loader",
                value="ffcv",
                remedy="install it with `make setup`, or use loader: native (equal batches)",
            )
    return NativeEngine(file, geometry, pool, num_threads)


def _refuse_empty(sampler: BatchSampler, where: str) -> None:
    if sampler.num_batches == 0:
        raise UserError(
            f"{len(sampler.indices)} samples do not fill one batch",
            where=where,
            value=sampler.batch_size,
            remedy="use a smaller batch_size",
        )
