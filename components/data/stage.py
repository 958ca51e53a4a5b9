"""The `encode` stage: finds the images, encodes both splits, stores the files, and writes the manifest last."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.beton_reader import BetonFile
from components.data.config import EncodeConfig
from components.data.encode import EncodeSettings, ImageItem, encode_split
from components.data.manifest import VAL_NAMES, DataManifest, SplitManifest, SplitName, write_manifest
from components.data.sources import ImageSource, open_source
from components.errors import UserError
from components.files import no_space_as_user_error, remove_folder, write_json

if TYPE_CHECKING:
    from components.store.execute import StageJob
    from components.store.objects import ObjectStore

Progress = Callable[[str, int, int], None]
"""Called with (phase, images done, images in all)."""

MANIFEST = "manifest.json"
"""The artifact that later stages read."""


def run(job: StageJob) -> dict[str, Any]:
    """Encodes a data set: the `.beton` files go to the object store, names of images and `manifest.json` to artifacts.

    A split that an interrupted run had finished is not encoded again.

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
        job.run.log_metrics({f"{name}_images": split.num_images, f"{name}_bytes": split.size})
    job.run.save(work / VAL_NAMES, VAL_NAMES)
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
        work: a folder for this configuration alone; files that an earlier call finished there are used again.

    Raises:
        UserError: the source cannot be used as it is.
    """
    source = _open_source(config, work)
    write_json(work / VAL_NAMES, [_name_in_split(item) for item in source.splits["val"]])
    splits: dict[SplitName, SplitManifest] = {}
    names: tuple[SplitName, ...] = ("train", "val")
    for name in names:
        path = work / f"{name}.beton"
        if not _is_finished(path, len(source.splits[name]), len(source.classes)):
            _encode(config, source.splits[name], path, functools.partial(progress, f"encode {name}"))
        ref = objects.put(path, f"{key}/{name}.beton")
        splits[name] = SplitManifest(uri=ref.uri, size=ref.size, sha256=ref.sha256, num_images=len(source.splits[name]))
    return DataManifest(
        name=source.name,
        classes=source.classes,
        splits=splits,
        encode=config.model_dump(mode="json", exclude={"num_workers"}),
        notes=source.notes,
    )


def _open_source(config: EncodeConfig, work: Path) -> ImageSource:
    from components.store.objects import fetch_prefix

    try:
        return open_source(config, work / "source", fetch_prefix=fetch_prefix)
    except UserError:
        # The files unpacked from an unusable source are of no use to the next attempt.
        remove_folder(work / "source")
        raise


def _encode(config: EncodeConfig, items: list[ImageItem], path: Path, progress: Callable[[int, int], None]) -> None:
    settings = EncodeSettings(config.max_short_side, config.mode, config.quality, config.keep_jpeg)
    encode_split(items, path, settings, page_size=config.page_size, num_workers=config.num_workers, progress=progress)


def _name_in_split(item: ImageItem) -> str:
    return "/".join(Path(item.path).parts[-2:])


def _is_finished(path: Path, count: int, classes: int) -> bool:
    """Whether an earlier attempt finished this split: the writer renames a file only after it has been synced."""
    try:
        BetonFile(path, num_samples=count, num_classes=classes)
    except UserError:
        return False
    return True


def _result(manifest: DataManifest) -> dict[str, Any]:
    return {
        "dataset": manifest.name,
        "classes": manifest.num_classes,
        **{name: split.num_images for name, split in manifest.splits.items()},
        "bytes": sum(split.size for split in manifest.splits.values()),
        "notes": list(manifest.notes),
    }
