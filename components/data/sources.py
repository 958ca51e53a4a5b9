"""Finds the images of a source: its classes, its splits, and notes on decisions such as a split.

Every source is first turned into a folder in ImageNet layout (`train/<class>/*`, `val/<class>/*`): a built-in set is
drawn into one, an archive is unpacked, an `s3://` prefix is downloaded.

To add a kind of source, extend `_local_folder` here and `source_digest` in `components.data.config`.

Two sets are built in, 32 px RGB, and drawn when they are needed. `digits` are scikit-learn's 1,797 scanned digits,
enlarged, with a fixed split. `shapes` are twelve kinds of coloured, textured, rotated shapes on noise. A shape is a
formula over the plane, rotated, scaled and moved, sampled at 64 px and averaged down. Only the outline carries
information about the class; colour, texture and background do not. A shape is brighter than its background and tilted
by at most 30 degrees: with either polarity and any rotation, 1,800 images teach a small network next to nothing (15 %
after 12 epochs of `convnext_micro`, against over 90 %).

Raise a set's version in `components.data.config.BUILT_IN` when its pixels or its split change.
"""

from __future__ import annotations

import functools
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

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

    for index, (split, label, pixels) in enumerate(DRAW[name]()):
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


SIDE = 32
"""Pixels of every image's sides."""

DrawnImage = tuple[str, str, npt.NDArray[np.uint8]]
"""(split, class name, pixels): uint8 (32, 32, 3)."""

DIGITS_VAL_FRACTION = 0.2
"""Gives 1,438 training and 359 validation images, the same share of every digit."""

_DIGITS_SEED = 1797


def draw_digits() -> Iterator[DrawnImage]:
    """Yields every digit, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    val = held_out_positions(labels.tolist(), DIGITS_VAL_FRACTION, _DIGITS_SEED)
    for index, (flat, label) in enumerate(zip(images, labels, strict=True)):
        yield ("val" if index in val else "train"), str(label), _enlarge(flat.reshape(8, 8))


def _enlarge(ink: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Turns 8x8 values of 0 to 16 into a 32x32 RGB image of 0 to 255."""
    grey = np.rint(ink * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))


MAX_TILT = np.pi / 6
"""Largest rotation in radians, in either direction."""

SHAPES_PER_CLASS = {"train": 150, "val": 30}
_SHAPES_SEED = 20231
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])

Plane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def _polygon(corners: int) -> Callable[[Plane, Plane], Mask]:
    def inside(x: Plane, y: Plane) -> Mask:
        angle, step = np.arctan2(y, x), 2 * np.pi / corners
        return np.hypot(x, y) * np.cos(np.mod(angle, step) - step / 2) < np.cos(step / 2)

    return inside


def _star(x: Plane, y: Plane) -> Mask:
    wave = np.abs(np.mod(np.arctan2(y, x) * 5 / (2 * np.pi), 1.0) - 0.5) * 2
    return np.hypot(x, y) < 0.42 + 0.58 * wave


def _heart(x: Plane, y: Plane) -> Mask:
    u, v = x * 1.25, -y * 1.25 + 0.15
    return (u * u + v * v - 0.8) ** 3 < 1.3 * u * u * v**3


SHAPES: dict[str, Callable[[Plane, Plane], Mask]] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) < 0.22,
    "half_disc": lambda x, y: (np.hypot(x, y + 0.4) < 0.95) & (y > -0.4),
    "crescent": lambda x, y: (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.45, y) > 0.75),
    "triangle": _polygon(3),
    "square": _polygon(4),
    "star": _star,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.26) & (np.maximum(np.abs(x), np.abs(y)) < 0.95),
    "arrow": lambda x, y: ((np.abs(y) < 0.2) & (x > -0.95) & (x < 0.2)) | ((x > 0.1) & (np.abs(y) < (0.95 - x) * 0.85)),
    "heart": _heart,
    "corner": lambda x, y: (np.maximum(np.abs(x), np.abs(y)) < 0.8) & ((x < -0.25) | (y > 0.25)),
    "bars": lambda x, y: (np.abs(np.abs(x) - 0.5) < 0.24) & (np.abs(y) < 0.9),
}
"""Class name -> which points of the plane belong to the shape; it fills about [-1, 1] in x and y."""


def draw_shapes() -> Iterator[DrawnImage]:
    """Yields every shape, class by class within each split."""
    for split_number, (split, count) in enumerate(SHAPES_PER_CLASS.items()):
        for label, name in enumerate(SHAPES):
            for index in range(count):
                yield split, name, draw_shape(name, np.random.default_rng([_SHAPES_SEED, split_number, label, index]))


def draw_shape(name: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draws one image of the class `name`, uint8 (32, 32, 3)."""
    x, y = _grid(2 * SIDE)
    angle, size = rng.uniform(-MAX_TILT, MAX_TILT), rng.uniform(0.65, 0.95)
    dx, dy = rng.uniform(-1, 1, 2) * (1 - size) * 0.8
    u = ((x - dx) * np.cos(angle) + (y - dy) * np.sin(angle)) / size
    v = ((y - dy) * np.cos(angle) - (x - dx) * np.sin(angle)) / size
    shape_colour, ground_colour = _colours(rng)
    shape = shape_colour * _texture(u, v, rng)[:, :, None]
    ground = ground_colour * (1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y)[:, :, None]
    canvas = np.where(SHAPES[name](u, v)[:, :, None], shape, ground)
    small = (canvas[::2, ::2] + canvas[::2, 1::2] + canvas[1::2, ::2] + canvas[1::2, 1::2]) / 4
    noisy = small + rng.normal(0, rng.uniform(0.02, 0.08), small.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


@functools.cache
def _grid(side: int) -> tuple[Plane, Plane]:
    centres = (np.arange(side) + 0.5) * (2 / side) - 1
    x, y = np.meshgrid(centres.astype(np.float64), centres.astype(np.float64))
    return x, y


def _colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Draws the colours of shape and background in [0, 1]^3, the shape brighter by at least 0.3."""
    while True:
        shape, ground = rng.uniform(0.05, 0.95, (2, 3))
        if (shape - ground) @ _BRIGHTNESS >= 0.3:
            return shape, ground


def _texture(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Draws a factor between about 0.8 and 1 for every point: plain, stripes, checks or dots."""
    period, depth = rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.2)
    kind = rng.integers(4)
    if kind == 0:
        return np.ones_like(u)
    stripes, across = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
    pattern = (stripes > 0, stripes * across > 0, stripes + across > 0.8)[kind - 1]
    return np.where(pattern, 1 - depth, 1.0)


DRAW: dict[str, Callable[[], Iterator[DrawnImage]]] = {"digits": draw_digits, "shapes": draw_shapes}
"""Built-in set -> the function that draws it."""
