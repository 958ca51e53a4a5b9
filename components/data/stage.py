"""The `encode` stage: finds the images, encodes both splits, stores the files, and writes the manifest last."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.data.beton_reader import BetonFile
from components.data.config import EncodeConfig
from components.data.encode import encode_split
from components.data.encode_image import EncodeSettings, ImageItem
from components.data.manifest import DataManifest, SplitManifest, SplitName, StoredFile, write_manifest
from components.data.sources import ImageSource, open_source
from components.errors import UserError
from components.files import no_space_as_user_error

if TYPE_CHECKING:
    from components.store.execute import StageJob
    from components.store.objects import ObjectStore

Progress = Callable[[str, int, int], None]

MANIFEST = "manifest.json"
"""The artifact that later stages read."""


def run(job: StageJob) -> dict[str, Any]:
    """Encodes a data set.

    Artifact `manifest.json`; the `.beton` files go to the object store. A split that an interrupted run had finished
    is not encoded again.

    Returns:
        dataset, classes, train, val (counts), bytes, and notes.

    Raises:
        UserError: the source cannot be used as it is.
    """
    config = EncodeConfig.model_validate(job.spec.config)
    work = job.run.workdir
    job.run.progress(phase="find images", done=0, total=1, unit="sources")

    def report(phase: str, done: int, total: int) -> None:
        job.run.progress(phase=phase, done=done, total=total)

    with no_space_as_user_error(work):
        manifest = encode_source(config, work, job.objects, key=f"data/{job.spec.fingerprint}", progress=report)
    for note in manifest.notes:
        job.run.info(note)
    job.run.log_params({"dataset": manifest.name, "classes": manifest.num_classes})
    for name, split in manifest.splits.items():
        job.run.log_metrics({f"{name}_images": split.n, f"{name}_bytes": split.object.size})
    job.run.save(write_manifest(work / MANIFEST, manifest), MANIFEST)
    return _result(manifest)


def encode_source(
    config: EncodeConfig,
    work: Path,
    objects: ObjectStore,
    *,
    key: str,
    progress: Progress = lambda phase, done, total: None,
) -> DataManifest:
    """Encodes both splits of a source and stores them as `<key>/train.beton` and `<key>/val.beton`.

    Args:
        work: a folder for this configuration alone; what is finished there is used again.
        progress: called with (phase, images done, images in all).

    Raises:
        UserError: the source cannot be used as it is.
    """
    source = _opened(config, work)
    splits: dict[SplitName, SplitManifest] = {}
    names: tuple[SplitName, ...] = ("train", "val")
    for name in names:
        path = work / f"{name}.beton"
        if not _is_finished(path, len(source.splits[name]), len(source.classes)):
            _encode(config, source.splits[name], path, functools.partial(progress, f"encode {name}"))
        ref = objects.put(path, f"{key}/{name}.beton")
        splits[name] = _described(path, len(source.classes), StoredFile(uri=ref.uri, size=ref.size, sha256=ref.sha256))
    return DataManifest(
        name=source.name,
        classes=source.classes,
        splits=splits,
        encode=config.model_dump(mode="json", exclude={"workers"}),
        notes=source.notes,
    )


def _opened(config: EncodeConfig, work: Path) -> ImageSource:
    from components.store.objects import fetch_prefix

    try:
        return open_source(config, work / "source", fetch_prefix=fetch_prefix)
    except UserError:
        # What was unpacked from a source that does not fit is of no use to the next try.
        shutil.rmtree(work / "source", ignore_errors=True)
        raise


def _encode(config: EncodeConfig, items: list[ImageItem], path: Path, progress: Callable[[int, int], None]) -> None:
    settings = EncodeSettings(config.side, config.mode, config.quality, config.keep_jpeg)
    encode_split(items, path, settings, page_size=config.page_size, workers=config.workers, progress=progress)


def _is_finished(path: Path, count: int, classes: int) -> bool:
    """Whether an earlier try left this split whole; it was renamed only after it had been synced."""
    try:
        BetonFile(path, num_samples=count, num_classes=classes)
    except UserError:
        return False
    return True


def _described(path: Path, classes: int, stored: StoredFile) -> SplitManifest:
    file = BetonFile(path)
    return SplitManifest(
        object=stored,
        n=len(file),
        max_height=int(file.heights.max()),
        max_width=int(file.widths.max()),
        per_class=tuple(np.bincount(file.labels, minlength=classes).tolist()),
    )


def _result(manifest: DataManifest) -> dict[str, Any]:
    return {
        "dataset": manifest.name,
        "classes": manifest.num_classes,
        **{name: split.n for name, split in manifest.splits.items()},
        "bytes": sum(split.object.size for split in manifest.splits.values()),
        "notes": list(manifest.notes),
    }
