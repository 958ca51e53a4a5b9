"""Finds the images of a source: its classes, its splits, and what was decided about them.

Every source becomes a folder in ImageNet layout first (`train/<class>/*`, `val/<class>/*`): a built-in set is drawn
into one, an archive unpacked, an `s3://` prefix downloaded.

Unpacks a tar archive of images, refusing members that would land outside the target folder.

Which images of a set are held out or kept: seeded, even over the classes, the same on every machine.
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
from components.data.encode_image import ImageItem
from components.data.split import held_out, limited
from components.errors import UserError, nearest
from components.files import no_space_as_user_error

# MERGED
# MERGED

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
"""Endings of image files, in lower or upper case; other files are passed over."""

FetchPrefix = Callable[[str, Path], Path]


@dataclass(frozen=True)
class ImageSource:
    """The images of a set, ready to be encoded.

    `splits` maps `train` and `val` to images ordered by class and file name; `notes` are sentences for people about
    what was decided here (a split that was made, a limit).
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, list[ImageItem]]
    notes: tuple[str, ...] = ()


def open_source(config: EncodeConfig, work: Path, *, fetch_prefix: FetchPrefix | None = None) -> ImageSource:
    """Finds the images that `config` names.

    Args:
        work: a folder for what has to be drawn, unpacked or downloaded; what is complete there is used again.
        fetch_prefix: downloads an `s3://` prefix into a folder; `components.store.objects.fetch_prefix`.

    Raises:
        UserError: there is no such source, a class has no images, or val has a class that train has not.
    """
    root = _folder(config, work, fetch_prefix)
    classes, splits, notes = _listed(root, config)
    for split, limit in (("train", config.limit_train), ("val", config.limit_val)):
        if limit is not None and limit < len(splits[split]):
            notes.append(f"{split} was limited to {limit} of {len(splits[split])} images (seed {config.seed})")
            kept = limited([item.label for item in splits[split]], limit, config.seed)
            splits[split] = [splits[split][position] for position in kept]
    return ImageSource(config.dataset, classes, splits, tuple(notes))


def _folder(config: EncodeConfig, work: Path, fetch_prefix: FetchPrefix | None) -> Path:
    if config.source in BUILT_IN:
        return _complete(work / "drawn", lambda part: _draw(config.source, part))
    if config.source.startswith(S3):
        assert fetch_prefix is not None, "an s3:// source needs the store's fetch_prefix"
        return _layout_root(fetch_prefix(config.source, work / "fetched"), config.source)
    root = Path(config.source).expanduser()
    if root.is_file() and root.name.endswith(TAR_ENDINGS):
        return _layout_root(_complete(work / "unpacked", lambda part: unpack(root, part)), config.source)
    if not root.is_dir():
        raise UserError(
            "there is no such folder, archive or built-in set" + nearest(config.source, BUILT_IN),
            where="source",
            value=config.source,
            remedy=f"name an existing folder or .tar, an s3:// address, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    return _layout_root(root, config.source)


def _complete(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill` unless it was before; it gets its name only when it is complete."""
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        part.rename(folder)
    return folder


def _draw(name: str, folder: Path) -> None:
    """Writes a built-in set as PNGs in ImageNet layout."""
    from PIL import Image

    from components.data import builtin

    for index, (split, label, pixels) in enumerate(
        {"digits": builtin.draw_digits, "shapes": builtin.draw_shapes}[name]()
    ):
        path = folder / split / label / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def _layout_root(root: Path, source: str) -> Path:
    """The folder that holds `train/`: `root` itself, or the only folder in it."""
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


def _listed(root: Path, config: EncodeConfig) -> tuple[tuple[str, ...], dict[str, list[ImageItem]], list[str]]:
    classes = _class_names(root / "train")
    numbers = {name: number for number, name in enumerate(classes)}
    train = _images(root / "train", numbers)
    if (root / "val").is_dir():
        unknown = [name for name in _class_names(root / "val") if name not in numbers]
        if unknown:
            raise UserError(
                f"val has a class that train has not{nearest(unknown[0], classes)}",
                where=str(root / "val" / unknown[0]),
                remedy="give train and val the same class folders",
            )
        return classes, {"train": train, "val": _images(root / "val", numbers)}, []
    chosen = held_out([item.label for item in train], config.val_fraction, config.seed)
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
        # AppleDouble and other hidden files carry an image's ending and are none.
        files = [path for path in files if not path.name.startswith(".") and path.is_file()]
        if not files:
            known = " ".join(sorted(IMAGE_ENDINGS))
            raise UserError(
                "this class folder has no images", where=str(split / name), remedy=f"add images ({known}) or remove it"
            )
        items += [ImageItem(str(path), numbers[name]) for path in files]
    return items


def unpack(archive: Path, folder: Path) -> None:
    """Extracts the regular files of `archive` into `folder` (Python's `data` filter: no links out, no devices).

    Raises:
        UserError: it is no whole tar archive, it holds an unsafe member, or no space is left.
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
            f"this is no whole tar archive ({error})", where=str(archive), remedy="fetch or pack it again"
        ) from error
