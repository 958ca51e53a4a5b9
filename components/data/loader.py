"""Batches of an encoded set: the same order and the same pixels from either engine, on any number of ranks.

`ffcv` reads with FFCV's loader (fast on large sets, 10 to 18 s of compilation for every loader), `native` with NumPy,
libjpeg-turbo and threads (at work at once). `auto` takes FFCV for large training sets where it imports.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from components.data.augment import Augmentation
from components.data.beton_reader import BetonFile
from components.data.crop import CenterCrop, RandomCrop
from components.data.jpeg import decoder_name
from components.data.manifest import DataManifest
from components.data.native_engine import Geometry, NativeEngine, Stream, augmented
from components.data.randomness import MAX_EPOCH
from components.data.sampler import BatchOrder, Indices, all_or_given
from components.errors import UserError

if TYPE_CHECKING:
    from components.store.objects import ObjectStore

EngineName = Literal["auto", "ffcv", "native"]

WORTH_FFCV = 50_000
"""Samples from which `auto` takes FFCV: below, its compilation costs more than it saves."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch; the arrays belong to the caller.

    `images` is uint8 (B, H, W, 3) RGB; float32 with 0..1 for pixels where the augmentation leaves that range (faithful
    random erasing). `labels` and `indices` are int64 (B,); an index is the sample's row in the encoded file.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]


class Engine(Protocol):
    """What turns batches of indices into batches of images."""

    name: str

    def stream(self, batches: Sequence[Indices], epoch: int) -> Stream: ...


class Epoch:
    """The batches of one epoch: an iterator, and a context that stops the work behind it when it is left early."""

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
        """Ends the epoch; nothing of it runs on. Harmless after its end."""
        self._batches.close()


class Loader:
    """Made by `open_loader`.

    Attributes:
        engine: the engine in use, `ffcv` or `native`.
        decoder: what decodes its JPEGs, `libjpeg-turbo` or `opencv` (whose pixels differ; worth recording).
        num_batches: batches in an epoch, the same on every rank.
        num_samples: samples that take part, over all ranks.
    """

    def __init__(
        self,
        file: BetonFile,
        order: BatchOrder,
        engine: Engine,
        augment: Augmentation | None,
        pool: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self.engine, self.decoder = engine.name, decoder_name()
        self.num_batches, self.num_samples = order.num_batches, len(order.indices)
        self._file, self._order, self._engine, self._augment = file, order, engine, augment
        self._pool, self._threads = pool, threads

    def epoch(self, epoch: int, start_batch: int = 0) -> Epoch:
        """The batches of an epoch from `start_batch` (0 to num_batches) on.

        Both order and pixels are pure functions of the seed, the epoch and the sample: a run that goes on at batch k
        sees what an uninterrupted one would have seen.

        Raises:
            UserError: while iterating, when an image turns out to be damaged.
        """
        assert 0 <= epoch <= MAX_EPOCH, epoch
        assert 0 <= start_batch <= self.num_batches, start_batch
        return Epoch(self._batches(epoch, start_batch))

    def _batches(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        stream = self._engine.stream(self._order.batches(epoch, start_batch), epoch)
        try:
            for images, indices in augmented(stream, self._augment, epoch, self._pool, self._threads):
                yield Batch(images, self._file.labels[indices], indices)
        finally:
            stream.close()

    def close(self) -> None:
        """Ends the threads. A loader that is not closed ends them with the process."""
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
    world: int = 1,
    threads: int = 2,
    indices: Sequence[int] | Indices | None = None,
    order: Literal["random", "fixed", "sequential"] | None = None,
    crop: RandomCrop | CenterCrop | None = None,
    flip: float | None = None,
    augment: Augmentation | None = None,
    drop_last: bool | None = None,
) -> Loader:
    """Opens a split of an encoded set.

    Args:
        objects: the store that has the files; it verifies their sha256.
        batch_size: of the global batch; rank r of `world` gets rows r*B/world .. (r+1)*B/world of each.
        resolution: pixels of the (square) output.
        seed: of the order, crops, flips and augmentations.
        train: sets what is left None: random order, random crop, flip 0.5 and dropped last batch for training;
            sequential order, whole images, no flip and nothing dropped otherwise.
        threads: decoding threads of this rank.
        indices: the samples that take part; all when None.
        augment: heavy augmentation after crop and flip.

    Raises:
        UserError: a damaged file, `ffcv` where it does not import, ranks that do not divide the batch, a batch larger
            than the set with drop_last, an index outside the set.
    """
    described = manifest.split(split)
    path = objects.get(_reference(described.object))
    file = BetonFile(path, num_samples=described.n, num_classes=manifest.num_classes)
    geometry = Geometry(
        resolution,
        seed,
        crop=crop or (RandomCrop() if train else CenterCrop()),
        flip=(0.5 if train else 0.0) if flip is None else flip,
    )
    batches = BatchOrder(
        all_or_given(indices, len(file)),
        batch_size,
        seed=seed,
        order=order or ("random" if train else "sequential"),
        drop_last=train if drop_last is None else drop_last,
        rank=rank,
        world=world,
    )
    _refuse_empty(batches, f"{manifest.name}/{split}")
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    chosen = _engine(engine, file, geometry, batches, pool, threads)
    return Loader(file, batches, chosen, augment, pool, threads)


def _engine(
    wanted: EngineName, file: BetonFile, geometry: Geometry, order: BatchOrder, pool: ThreadPoolExecutor, threads: int
) -> Engine:
    # FFCV has no antialiased bicubic resize, so evaluation reads natively whatever was asked for.
    large = len(order.indices) >= WORTH_FFCV
    if isinstance(geometry.crop, RandomCrop) and (wanted == "ffcv" or (wanted == "auto" and large)):
        from components.data.ffcv_engine import FfcvEngine, why_not

        cause = why_not()
        if not cause:
            return FfcvEngine(file, geometry, order.batch_size // order.world, threads)
        if wanted == "ffcv":
            raise UserError(
                f"FFCV does not import ({cause})",
                where="loader",
                value="ffcv",
                remedy="install it with `make setup`, or use loader: native (equal batches)",
            )
    return NativeEngine(file, geometry, pool, threads)


def _reference(stored: Any) -> Any:
    from components.store.objects import ObjectRef

    return ObjectRef(uri=stored.uri, size=stored.size, sha256=stored.sha256)


def _refuse_empty(order: BatchOrder, where: str) -> None:
    if order.num_batches == 0:
        raise UserError(
            f"{len(order.indices)} samples do not fill one batch",
            where=where,
            value=order.batch_size,
            remedy="use a smaller batch_size",
        )
