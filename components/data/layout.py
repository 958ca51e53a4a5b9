"""The layout of a source of images: which files are images of which split and class, from their names alone.

Planning and encoding read it by the same function, so that `plan` refuses what `run` would refuse. Nothing is left out
without a word: an image that cannot be assigned is refused, everything else that is not used is named in a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from posixpath import splitext

from components.errors import UserError, nearest

IMAGE_ENDINGS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k"),
    }
)
"""Endings of image files, in lower or upper case: of the formats for photographs and drawings that Pillow 12 reads."""

VAL_NAMES = ("val", "valid", "validation")
"""Names of the folder with the validation images, in lower or upper case."""

_HELD_BACK_NAMES = ("test", "testing", "eval", "dev")
"""Names of folders whose purpose only their owner knows: a test set is not validated on by accident."""

FEWEST_CLASSES = 2


@dataclass(frozen=True)
class Layout:
    """Where the images of a source are.

    Attributes:
        classes: class names, sorted; the label of a class is its index.
        images: `train` and, if the source has it, `val`: (class, name of the file below the source), sorted.
        notes: sentences for people about what is missing or not used.
    """

    classes: tuple[str, ...]
    images: dict[str, list[tuple[str, str]]]
    notes: tuple[str, ...] = ()


def read_layout(names: Iterable[str], where: str) -> Layout:
    """Returns the layout of a source.

    Args:
        names: POSIX paths below the source of all its files, and of its folders with a slash at the end.
        where: the source as the user wrote it, for messages.

    Raises:
        UserError: there is no `train`, several folders could be `val`, there are fewer than two classes, a class has no
            images, val has a class that train lacks, or an image is in no class folder.
    """
    where = where.rstrip("/") or "/"
    shown = [name for name in names if not any(part.startswith(".") for part in name.rstrip("/").split("/"))]
    root = _root(shown, where)
    inside = [name.removeprefix(root) for name in shown if name.startswith(root) and name != root]
    splits, unused = _splits(inside, where, root)
    images = {split: _images(split, inside, folder, f"{where}/{root}{folder}") for split, folder in splits.items()}
    classes = tuple(images["train"])
    if len(classes) < FEWEST_CLASSES:
        remedy = "use one folder for each class, and at least two classes"
        what = "there is only one class, which every model gets right"
        raise UserError(what, where=where, value=classes[0], remedy=remedy)
    notes = [*unused, *_check_val(classes, images, f"{where}/{root}{splits.get('val', '')}"), *_other_files(inside)]
    kept = {split: [(c, root + name) for c in sorted(found) for name in found[c]] for split, found in images.items()}
    return Layout(classes, kept, tuple(notes))


def _root(names: list[str], where: str) -> str:
    """Returns the folder that holds `train/`: an empty string, or the only folder of the source with a slash."""
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    for root in ("", *(f"{top}/" for top in tops[:1] if len(tops) == 1)):
        if any(name.startswith(f"{root}train/") for name in names):
            return root
    found = next((top for top in tops if top.lower() in ("train", "training")), "")
    raise UserError(
        "there is no folder `train` in it" + (f", did you mean {found!r}?" if found else ""),
        where="source",
        value=where,
        remedy="lay the images out as train/<class>/<image> and, if you have them, val/<class>/<image>",
    )


def _splits(names: list[str], where: str, root: str) -> tuple[dict[str, str], list[str]]:
    """Returns split -> its folder, and notes about folders that are not used."""
    folders = sorted({name.split("/")[0] for name in names if "/" in name} - {"train"})
    vals = [folder for folder in folders if folder.lower() in VAL_NAMES]
    if len(vals) > 1:
        what = f"several folders could hold the validation images: {', '.join(vals)}"
        raise UserError(what, where=f"{where}/{root}", remedy="keep one of them, as `val`")
    held_back = [folder for folder in folders if folder.lower() in _HELD_BACK_NAMES]
    if held_back and not vals:
        what = f"there is no folder `val`, and it is not clear what `{held_back[0]}` is for"
        remedy = "rename it to `val` to evaluate on it, or remove it to hold out a part of train"
        raise UserError(what, where=f"{where}/{root}", remedy=remedy)
    unused = [folder for folder in folders if folder not in vals]
    notes = [f"not used: folder{'s' if len(unused) > 1 else ''} {', '.join(unused)}"] if unused else []
    return {"train": "train", **({"val": vals[0]} if vals else {})}, notes


def _images(split: str, names: list[str], folder: str, where: str) -> dict[str, list[str]]:
    """Returns class -> names of its images, sorted."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        first, *rest = name.split("/")
        if first != folder or not rest or not rest[0]:
            continue
        if len(rest) > 1:
            found.setdefault(rest[0], [])
        if is_image(name):
            if len(rest) != 2:
                what = "this image is in no class folder" if len(rest) == 1 else "this image is in a folder of a class"
                remedy = f"move it, and all others like it, to {split}/<class>/"
                raise UserError(what, where=f"{where}/{'/'.join(rest)}", remedy=remedy)
            found[rest[0]].append(name)
    if not found:
        raise UserError("there are no class folders in it", where=where, remedy="use one folder for each class")
    empty = next((name for name, images in found.items() if not images), None)
    if empty is not None:
        known = " ".join(sorted(IMAGE_ENDINGS))
        remedy = f"add images ({known}) or remove it"
        raise UserError("this class folder has no images", where=f"{where}/{empty}", remedy=remedy)
    return dict(sorted(found.items()))


def is_image(name: str) -> bool:
    """Returns whether a file is an image by the ending of its name, and neither it nor a folder above it is hidden."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and splitext(name)[1].lower() in IMAGE_ENDINGS


def _check_val(classes: tuple[str, ...], images: dict[str, dict[str, list[str]]], where: str) -> list[str]:
    """Compares the classes of val with those of train, and returns a note about missing ones."""
    if "val" not in images:
        return []
    unknown = [name for name in images["val"] if name not in classes]
    if unknown:
        raise UserError(
            f"val has a class that train lacks{nearest(unknown[0], classes)}",
            where=f"{where}/{unknown[0]}",
            remedy="give train and val the same class folders",
        )
    missing = [name for name in classes if name not in images["val"]]
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return [f"val has no images of {len(missing)} of {len(classes)} classes, which no figure covers: {shown}"]


def _other_files(names: list[str]) -> list[str]:
    """Returns a note about files below class folders that are no images by their endings."""
    others = [name for name in names if name.count("/") >= 2 and not name.endswith("/") and not is_image(name)]
    if not others:
        return []
    endings = Counter(splitext(name)[1].lower() or "without" for name in others)
    listed = ", ".join(f"{number} {ending}" for ending, number in sorted(endings.items()))
    return [f"not used: {len(others)} files of class folders that are no images by their endings ({listed})"]
