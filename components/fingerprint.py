"""The fingerprint of a stage: a hash of everything that decides its result, known before anything runs.

fingerprint = sha256(canonical JSON of {kind, version, config, parents' fingerprints, data digest, seed})

Parents enter by their *fingerprints*, not by their output bytes, so that the fingerprints of a whole plan follow from
the recipe and the data alone. Fields that cannot change a result (worker counts, loader engine, log intervals) are
marked with `NO_FINGERPRINT` where they are declared, and left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""Raised when the meaning of the hashed document changes; every stage then runs again."""

NO_FINGERPRINT: dict[str, Any] = {"fingerprint": False}
"""Used as `pydantic.Field(json_schema_extra=NO_FINGERPRINT)`: the field does not change what the stage computes."""

WHEN_SET: dict[str, Any] = {"fingerprint": "when set"}
"""Used as `pydantic.Field(json_schema_extra=WHEN_SET)`: the field is left out while it has its default value, so that
adding it does not change the fingerprints of stages that do not use it."""


def canonical_json(value: Any) -> str:
    """Returns JSON with sorted keys, no white space and the shortest floats that read back equal.

    Raises:
        ValueError: `value` contains NaN or an infinity, or a key that is not a string.
        TypeError: JSON has no type for a value.
    """
    _refuse_non_finite(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no canonical form")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key {key!r} is not a string")
            _refuse_non_finite(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_non_finite(item)


def fingerprint(
    *, kind: str, version: int, config: Mapping[str, Any], parents: Mapping[str, str], data_digest: str, seed: int
) -> str:
    """Returns the sha256 (64 hex digits) that identifies one stage's work.

    Args:
        kind: the stage's kind in the stage table.
        version: the stage's code version in the stage table.
        config: the fields of the stage's resolved configuration that change its result.
        parents: role -> fingerprint of the stage that fills it.
        data_digest: digest of the files that the configuration names (images, a list of images), else an empty string.
        seed: the recipe's seed.
    """
    document = {
        "format": FORMAT,
        "kind": kind,
        "version": version,
        "config": dict(config),
        "parents": dict(parents),
        "data": data_digest,
        "seed": str(seed),
    }
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def fingerprinted(config: Any, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Returns the part of a pydantic model that belongs in a fingerprint, as plain JSON values.

    Args:
        config: a pydantic model. Fields marked with `NO_FINGERPRINT` are left out at any depth, and those marked with
            `WHEN_SET` as long as they have their default value.
        without: top-level fields that are left out too: references to parents, which enter by their fingerprints.
    """
    kept = {}
    for name, field in type(config).model_fields.items():
        mark = field.json_schema_extra.get("fingerprint") if isinstance(field.json_schema_extra, dict) else None
        value = getattr(config, name)
        unused = mark == WHEN_SET["fingerprint"] and value == field.get_default(call_default_factory=True)
        if name in without or mark is False or unused:
            continue
        kept[name] = _plain(value)
    return kept


def _plain(value: Any) -> Any:
    if hasattr(type(value), "model_fields"):
        return fingerprinted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
