"""Lists of images to evaluate on: RobustBench's 5,000 ImageNet validation images, or a list in a file.

A list is a text file with one `class/file` per line. Its order is that of the evaluation: fewer images are its first
ones. Published robust accuracies on ImageNet are measured on RobustBench's list, which is about 2 points easier than
all 50,000 images, so that a random choice of images cannot reproduce them. The list comes with the package
`robustbench` (MIT licence) and is not part of this project. Light to import: planning a run digests the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.evaluate.config import IMAGE_FILE, EvaluateConfig

ROBUSTBENCH_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
"""Of the list in robustbench 1.1.1: 5,000 images of 997 classes."""

_ROBUSTBENCH_FILE = "helper_files/imagenet_test_image_ids.txt"
_REMEDY = (
    "unpack the wheel (`pip download --no-deps robustbench`; the package itself needs an older timm) and set images: "
    f"file:<folder>/robustbench/{_ROBUSTBENCH_FILE}, or images: drawn for a random choice"
)


@dataclass(frozen=True)
class ImageList:
    """A list of images.

    Attributes:
        names: `class/file` of each image, in the order of the list.
        title: what rows of results call the set: `RobustBench`, or the file's name with the start of its sha256.
        sha256: of the file.
        where: the file, for messages.
    """

    names: tuple[str, ...]
    title: str
    sha256: str
    where: str

    def rows(self, known: Sequence[str], num_images: int) -> list[int]:
        """Returns the rows of the first `num_images` images of the list in an encoded split.

        Args:
            known: `class/file` of each row of the split.

        Raises:
            UserError: the split lacks an image of the list, whether or not it is among the first.
        """
        numbers = {name: row for row, name in enumerate(known)}
        missing = [name for name in self.names if name not in numbers]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self.names)} images of the list are not in the encoded validation images, "
                f"such as {missing[0]!r}",
                where=self.where,
                remedy=f"encode all of them under these names (an image there is called {known[0]!r})",
            )
        return [numbers[name] for name in self.names[:num_images]]


def image_list(config: EvaluateConfig) -> ImageList | None:
    """Reads the list that a configuration names; None if the images are drawn.

    Raises:
        UserError: there is no such file, RobustBench's list is not installed or was changed, the file has another
            sha256 than the configuration says, or it is empty or names an image twice.
    """
    if config.images == "drawn":
        return None
    robustbench = config.images == "robustbench"
    path = _installed() if robustbench else Path(config.images.removeprefix(IMAGE_FILE)).expanduser()
    content = _read(path)
    sha256 = hashlib.sha256(content).hexdigest()
    expected = ROBUSTBENCH_SHA256 if robustbench else config.images_sha256
    if expected is not None and sha256 != expected:
        raise UserError(
            f"the list's sha256 is not {expected}",
            where=str(path),
            value=sha256,
            remedy=_REMEDY if robustbench else "take the right list, or correct images_sha256",
        )
    title = "RobustBench" if sha256 == ROBUSTBENCH_SHA256 else f"{path.name} ({sha256[:8]})"
    return ImageList(_names(content, path), title, sha256, str(path))


def images_digest(config: EvaluateConfig, **_: Any) -> str:
    """Returns the sha256 of the list for the fingerprint; empty if the images are drawn.

    Raises:
        UserError: as `image_list`, so that a missing list is noticed before anything is trained.
    """
    found = image_list(config)
    return found.sha256 if found else ""


def _installed() -> Path:
    spec = find_spec("robustbench")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, _ROBUSTBENCH_FILE)).is_file():
            return path
    raise UserError(
        "RobustBench's list of images is not installed", where="images", value="robustbench", remedy=_REMEDY
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the list of images cannot be read ({error.strerror})",
            where=str(path),
            remedy="give the path of a text file with one class/file per line",
        ) from error


def _names(content: bytes, path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError("this list is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from error
    if not names:
        raise UserError("this list is empty", where=str(path), remedy="name an image per line, as class/file")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(
                "an image is in the list twice", where=str(path), value=name, remedy="remove one of the two lines"
            )
        seen.add(name)
    return names
