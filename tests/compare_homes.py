"""Compares the newest pipeline runs of two homes: are weights, encoded data and results bit-identical?

    python -m tests.compare_homes HOME_A HOME_B

Stages are compared by name. Compared are the sha256 of all safetensors files (weights of the model, which are the EMA
weights, and of checkpoints as far as they are kept: model, EMA and optimizer), of encoded data and of gallery images,
the training history, the rows and conditions of results, the verdicts of all images, and the decisions of promotions.
Times and run ids are left out. Checkpoints are taken by the clock, so two runs keep those of different steps: they are
compared if both homes have one of the same step. The exit status is 1 if anything is different or if nothing could be
compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.files import sha256_file
from components.store.settings import StorageSettings
from components.store.tracking import Tracking

IGNORED = {"seconds", "images_per_s", "data_wait", "model_run", "split"}
"""Keys of times and ids; `split` is in the details of later rows only, and `images_digest` says more."""
PROSE = {"images", "radii", "interval", "targets_note"}
"""Keys whose value is not compared if it is a text: a sentence for people."""
RENAMED = {
    "live_attacked_accuracy": "raw_attacked_accuracy",
    "live_clean_accuracy": "raw_clean_accuracy",
    "live_robust_accuracy": "raw_robust_accuracy",
}
"""Key in a home written before a rename -> key since then."""
DOCUMENTS = {"history.json": None, "results/results.json": None, "results/verdicts.json": ("resolutions",)}
"""JSON artifact -> the top-level keys that are compared; None for all."""
CHECKPOINT = "checkpoint of step "
"""Begins the name of a file of a checkpoint."""
DECISION = ("promoted", "clean_accuracy", "robust_accuracy", "version")
"""Fields of a promotion's result; its reasons are prose."""

Content = dict[str, Any]
"""What is compared -> its value."""


def newest_run(home: Path) -> dict[str, tuple[str, Path]]:
    """Returns stage name -> (kind, artifact folder) of the newest pipeline run in a home."""
    tracking = Tracking(StorageSettings.from_environment({}, home=home))
    runs = tracking.last_pipeline_runs(1)
    if not runs:
        sys.exit(f"error: no pipeline run in {home}")
    found = {}
    for name, (run_id, _) in tracking.stages_of(runs[0]["run_id"]).items():
        kind = tracking.client.get_run(run_id).data.tags["stage_kind"]
        # Not the run's artifact URI, so that a home can be compared after it was copied.
        found[name] = (kind, home / "artifacts" / run_id / "artifacts")
    return found


def content_of(kind: str, folder: Path) -> Content:
    """Returns everything of a stage that must not change."""
    found: Content = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".png"}:
            found[_name(folder, path)] = sha256_file(path)
    for name, keys in DOCUMENTS.items():
        if (folder / name).is_file():
            document = json.loads((folder / name).read_text())
            found[name] = normal({key: document[key] for key in keys} if keys else document)
    if (folder / "objects.json").is_file():
        for item in json.loads((folder / "objects.json").read_text()):
            found[Path(item["uri"]).name] = (item["size"], item["sha256"])
    if kind == "promote":
        result = json.loads((folder / "result.json").read_text())
        found["decision"] = {key: result[key] for key in DECISION}
    return found


def _name(folder: Path, path: Path) -> str:
    """Returns the name of a file in the comparison; a checkpoint is named by its step, not by its folder."""
    state = path.parent / "state.json"
    if not state.is_file():
        return path.relative_to(folder).as_posix()
    return f"{CHECKPOINT}{json.loads(state.read_text())['step']}/{path.name}"


def without_single_checkpoints(contents: list[Content]) -> list[Content]:
    """Returns the contents of a stage in two homes without checkpoints of steps that only one of them has."""
    both = set(contents[0]) & set(contents[1])
    return [
        {name: item for name, item in content.items() if name in both or not name.startswith(CHECKPOINT)}
        for content in contents
    ]


def normal(value: Any) -> Any:
    """Returns a JSON value without times and ids, with the present key names."""
    if isinstance(value, list):
        return [normal(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "name" in value and "stage" in value and "kind" not in value:
        # Rows written before `stage` meant the stage's name.
        value = {**value, "kind": value["stage"], "stage": value["name"]}
        del value["name"]
    kept = {key: item for key, item in value.items() if key not in IGNORED}
    prose = {key for key in PROSE & set(kept) if isinstance(kept[key], str)}
    return {RENAMED.get(key, key): normal(item) for key, item in kept.items() if key not in prose}


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yields a line for each place where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            at = f"{path}.{key}" if path else key
            if key not in one or key not in other:
                yield f"{at}: only in {'A' if key in one else 'B'}"
            else:
                yield from differences(one[key], other[key], at)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {one} in A, {other} in B"


def compare(home_a: Path, home_b: Path) -> bool:
    """Prints the comparison stage by stage; returns whether all is equal and something was compared."""
    runs = [newest_run(home) for home in (home_a, home_b)]
    equal, compared = True, 0
    for stage in dict.fromkeys([*runs[0], *runs[1]]):
        if not all(stage in run for run in runs):
            equal = False
            print(f"{stage:<24} DIFFERENT: only in {'A' if stage in runs[0] else 'B'}")
            continue
        contents = without_single_checkpoints([content_of(*run[stage]) for run in runs])
        found = list(differences(*contents))
        compared += len(contents[0])
        equal = equal and not found
        names = ", ".join(contents[0]) if len(contents[0]) <= 4 else f"{len(contents[0])} files"
        print(f"{stage:<24} {'DIFFERENT' if found else 'equal':<10} {names or 'nothing to compare'}")
        for line in found[:10]:
            print(f"    {line}")
    print(f"{'equal' if equal else 'DIFFERENT'}: {compared} files and documents compared")
    return equal and compared > 0


def main() -> None:
    """Compares two homes and exits with 1 if they differ."""
    parser = argparse.ArgumentParser(description="Compare the newest pipeline runs of two homes.")
    parser.add_argument("home_a", type=Path)
    parser.add_argument("home_b", type=Path)
    options = parser.parse_args()
    for home in (options.home_a, options.home_b):
        if not (home / "mlflow.db").is_file():
            parser.error(f"{home} is no home: it has no mlflow.db")
    sys.exit(0 if compare(options.home_a.resolve(), options.home_b.resolve()) else 1)


if __name__ == "__main__":
    main()
