"""Finds the images of a source: its classes, its splits, and notes on decisions such as a split.

Every source is first turned into a folder in ImageNet layout (`train/<class>/*`, `val/<class>/*`): a built-in set is
drawn into one, an archive is unpacked, an `s3://` prefix is downloaded.

To add a kind of source, extend `_local_folder` here and `source_digest` in `components.data.config`.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.data.config import BUILT_IN, S3, TAR_ENDINGS, EncodeConfig
from components.data.encode import ImageItem
from components.data.sampler import held_out_positions, limited_positions
from components.errors import UserError, nearest
from components.files import no_space_as_user_error

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
"""Endings of image files, in lower or upper case; other files are ignored."""

FetchPrefix = Callable[[str, Path], Path]
"""Downloads an `s3://` prefix into a folder and returns the folder that holds its files."""


@dataclass(frozen=True)
class ImageSource:
    """The images of a data set, ready to be encoded.

    Attributes:
        name: name of the data set in tables.
        classes: class names; the label of a class is its index.
        splits: `train` and `val`, each ordered by class and file name.
        notes: sentences for people about decisions made here (a split, a limit).
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, list[ImageItem]]
    notes: tuple[str, ...] = ()


def open_source(config: EncodeConfig, work: Path, *, fetch_prefix: FetchPrefix | None = None) -> ImageSource:
    """Finds the images that `config` names.

    Args:
        work: a folder for drawn, unpacked or downloaded images; complete ones from an earlier call are used again.
        fetch_prefix: `components.store.objects.fetch_prefix`; needed for an `s3://` source only.

    Raises:
        UserError: there is no such source, a class has no images, or val has a class that train lacks.
    """
    root = _local_folder(config, work, fetch_prefix)
    classes, splits, notes = _list_images(root, config)
    for split, limit in (("train", config.max_train_images), ("val", config.max_val_images)):
        if limit is not None and limit < len(splits[split]):
            notes.append(f"{split} was limited to {limit} of {len(splits[split])} images (seed {config.seed})")
            kept = limited_positions([item.label for item in splits[split]], limit, config.seed)
            splits[split] = [splits[split][position] for position in kept]
    return ImageSource(config.dataset, classes, splits, tuple(notes))


def _local_folder(config: EncodeConfig, work: Path, fetch_prefix: FetchPrefix | None) -> Path:
    if config.source in BUILT_IN:
        return _fill_once(work / "drawn", lambda part: _draw(config.source, part))
    if config.source.startswith(S3):
        assert fetch_prefix is not None, "an s3:// source needs the store's fetch_prefix"
        return _layout_root(fetch_prefix(config.source, work / "fetched"), config.source)
    root = Path(config.source).expanduser()
    if root.is_file() and root.name.endswith(TAR_ENDINGS):
        return _layout_root(_fill_once(work / "unpacked", lambda part: unpack(root, part)), config.source)
    if not root.is_dir():
        raise UserError(
            "there is no such folder, archive or built-in set" + nearest(config.source, BUILT_IN),
            where="source",
            value=config.source,
            remedy=f"name an existing folder or archive, an s3:// address, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    return _layout_root(root, config.source)


def _fill_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fills `folder` by `fill` unless an earlier call did; the folder gets its name only when it is complete."""
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        part.rename(folder)
    return folder


def _draw(name: str, folder: Path) -> None:
    """Writes a built-in set as PNG files in ImageNet layout."""
    from PIL import Image

    from components.data import builtin

    for index, (split, label, pixels) in enumerate(builtin.DRAW[name]()):
        path = folder / split / label / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def _layout_root(root: Path, source: str) -> Path:
    """Returns the folder that holds `train/`: `root` itself, or the only folder in it."""
    inside = [item for item in root.iterdir() if item.is_dir() and not item.name.startswith(".")]
    for candidate in (root, *(inside if len(inside) == 1 else ())):
        if (candidate / "train").is_dir():
            return candidate
    raise UserError(
        "there is no folder `train` in it",
        where="source",
        value=source,
        remedy="lay the images out as train/<class>/<image> and, if you have them, val/<class>/<image>",
    )


def _list_images(root: Path, config: EncodeConfig) -> tuple[tuple[str, ...], dict[str, list[ImageItem]], list[str]]:
    classes = _class_names(root / "train")
    numbers = {name: number for number, name in enumerate(classes)}
    train = _images(root / "train", numbers)
    if (root / "val").is_dir():
        unknown = [name for name in _class_names(root / "val") if name not in numbers]
        if unknown:
            raise UserError(
                f"val has a class that train lacks{nearest(unknown[0], classes)}",
                where=str(root / "val" / unknown[0]),
                remedy="give train and val the same class folders",
            )
        return classes, {"train": train, "val": _images(root / "val", numbers)}, []
    chosen = held_out_positions([item.label for item in train], config.val_fraction, config.seed)
    splits = {
        "train": [item for position, item in enumerate(train) if position not in chosen],
        "val": [train[position] for position in sorted(chosen)],
    }
    if not splits["val"]:
        raise UserError("too few images to hold some out", where=str(root), remedy="add images, or a folder `val`")
    note = f"there is no val/: {len(chosen)} of {len(train)} train images were held out (seed {config.seed})"
    return classes, splits, [note]


def _class_names(split: Path) -> tuple[str, ...]:
    names = tuple(sorted(item.name for item in split.iterdir() if item.is_dir() and not item.name.startswith(".")))
    if not names:
        raise UserError("there are no class folders in it", where=str(split), remedy="use one folder for each class")
    return names


def _images(split: Path, numbers: dict[str, int]) -> list[ImageItem]:
    items: list[ImageItem] = []
    for name in _class_names(split):
        files = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
        # AppleDouble and other hidden files have an image's ending but hold no image.
        files = [path for path in files if not path.name.startswith(".") and path.is_file()]
        if not files:
            known = " ".join(sorted(IMAGE_ENDINGS))
            raise UserError(
                "this class folder has no images", where=str(split / name), remedy=f"add images ({known}) or remove it"
            )
        items += [ImageItem(str(path), numbers[name]) for path in files]
    return items


def unpack(archive: Path, folder: Path) -> None:
    """Extracts the regular files of a tar archive into a folder, by Python's `data` filter.

    The filter refuses links and members that would end up outside the folder, and devices.

    Raises:
        UserError: it is not a complete tar archive, it holds an unsafe member, or no space is left.
    """
    try:
        with no_space_as_user_error(folder), tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(
            f"the archive holds an unsafe member ({error})", where=str(archive), remedy="pack it again without it"
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"this is not a complete tar archive ({error})", where=str(archive), remedy="download or pack it again"
        ) from error
