"""The published RayJob CRD as a strict JSON schema: unknown fields are errors, where the API server would drop them."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

VARIABLE = "ROBUSTRAIN_CONTRACTS"
METADATA = {
    "type": "object",
    "required": ["name", "namespace"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": {
            "type": "object",
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
            },
        },
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "ownerReferences": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["apiVersion", "kind", "name", "uid"],
                "additionalProperties": False,
                "properties": {
                    **{key: {"type": "string"} for key in ("apiVersion", "kind", "name", "uid")},
                    "controller": {"type": "boolean"},
                    "blockOwnerDeletion": {"type": "boolean"},
                },
            },
        },
    },
}


def contracts() -> Path | None:
    """The folder with the published schemas, or None."""
    folder = os.environ.get(VARIABLE, "")
    return Path(folder) if folder and Path(folder, "ray.io_rayjobs.yaml").is_file() else None


def need_contracts() -> Path:
    """The folder, or a skip that says why."""
    folder = contracts()
    if folder is None:
        pytest.skip(f"{VARIABLE} does not name a folder with ray.io_rayjobs.yaml: nothing to validate against")
    return folder


@functools.lru_cache(maxsize=1)
def validator(folder: Path) -> Any:
    """Validates a whole RayJob."""
    with (folder / "ray.io_rayjobs.yaml").open() as stream:
        crd = yaml.safe_load(stream)
    version = next(entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    schema["properties"]["kind"] = {"const": "RayJob"}
    schema["properties"]["metadata"] = METADATA
    return jsonschema.Draft202012Validator(schema)


def faults(body: dict[str, Any], folder: Path) -> list[str]:
    """`path: message` of everything that is wrong with the resource."""
    found = validator(folder).iter_errors(body)
    return [f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in found]


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in copy.copy(node).items()}
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9.]+([a-zA-Z]{1,2})?$"}]
        node.pop("pattern", None)
    elif (
        node.get("type") == "object"
        and isinstance(node.get("properties"), dict)
        and "additionalProperties" not in node
        and not node.get("x-kubernetes-preserve-unknown-fields")
    ):
        node["additionalProperties"] = False
    elif node.get("type") == "object" and "properties" not in node and "additionalProperties" not in node:
        # Pod metadata inside a template has no schema of its own in the CRD.
        node["properties"] = {key: {} for key in ("name", "labels", "annotations")}
        node["additionalProperties"] = False
    return node
