"""What an encoded set is: classes, counts, settings, and a sha256 for every file. Small, JSON, written last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import UserError

FORMAT = 1

SplitName = Literal["train", "val"]


class StoredFile(BaseModel):
    """Where a `.beton` file lies and what it must be; the fields of the store's `ObjectRef`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    size: int = Field(ge=1, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SplitManifest(BaseModel):
    """One split: its file, its number of samples, and its largest sides in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    object: StoredFile
    n: int = Field(ge=1)
    max_height: int = Field(ge=1)
    max_width: int = Field(ge=1)
    per_class: tuple[int, ...] = Field(description="samples of each class")

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self.object.sha256


class DataManifest(BaseModel):
    """An encoded data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = FORMAT
    name: str
    classes: tuple[str, ...]
    splits: dict[SplitName, SplitManifest]
    encode: dict[str, Any] = Field(description="the EncodeConfig it was made with")
    notes: tuple[str, ...] = Field(default=(), description="what was decided about the source, for people")

    @property
    def num_classes(self) -> int:
        """How many classes the labels 0, 1, ... stand for."""
        return len(self.classes)

    def split(self, name: str) -> SplitManifest:
        """One split by name.

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
    """Writes it as JSON, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def read_manifest(path: Path) -> DataManifest:
    """Reads one.

    Raises:
        UserError: it is missing or is no manifest of this format.
    """
    remedy = "run the encode stage again"
    try:
        return DataManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError("there is no data manifest", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"damaged data manifest: {place}: {first['msg']}", where=str(path), remedy=remedy) from error
