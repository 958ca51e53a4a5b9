"""The manifest of an encoded data set: its classes, its settings, and size and sha256 of each split's `.beton` file.

A small JSON file, written after everything that it lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import UserError
from components.files import write_json

if TYPE_CHECKING:
    from components.store.objects import ObjectRef

FORMAT = 2
"""Raised when fields of the manifest change."""

VAL_NAMES = "val-names.json"
"""The artifact beside the manifest with `class/file` of each val image, in the order of the rows: an evaluation may
choose images by a list."""

SplitName = Literal["train", "val"]


class SplitManifest(BaseModel):
    """One split: the number of its images, and the `.beton` file in the object store that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="path or s3://bucket/key of the file")
    size: int = Field(ge=1, description="bytes of the file")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")
    num_images: int = Field(ge=1)

    @property
    def object_ref(self) -> ObjectRef:
        """The file as the object store names it."""
        from components.store.objects import ObjectRef

        return ObjectRef(uri=self.uri, size=self.size, sha256=self.sha256)


class DataManifest(BaseModel):
    """An encoded data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = FORMAT
    name: str
    classes: tuple[str, ...]
    splits: dict[SplitName, SplitManifest]
    encode: dict[str, Any] = Field(description="the EncodeConfig that the set was encoded with")
    notes: tuple[str, ...] = Field(default=(), description="sentences about decisions on the source, such as a limit")

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to num_classes - 1."""
        return len(self.classes)

    def split(self, name: str) -> SplitManifest:
        """Returns one split by name.

        Raises:
            UserError: there is no such split.
        """
        for known, split in self.splits.items():
            if known == name:
                return split
        raise UserError(
            "there is no such split", where=self.name, value=name, remedy=f"use one of: {', '.join(self.splits)}"
        )


def write_manifest(path: Path, manifest: DataManifest) -> Path:
    """Writes a manifest atomically as JSON and returns its path."""
    return write_json(path, manifest.model_dump(mode="json"))


def read_manifest(path: Path) -> DataManifest:
    """Reads a manifest.

    Raises:
        UserError: the file is missing or is not a manifest of this format.
    """
    remedy = "run the encode stage again"
    try:
        return DataManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError("there is no data manifest", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"damaged data manifest: {field}: {first['msg']}", where=str(path), remedy=remedy) from error
