"""Makes rows and documents of results for tests: complete and consistent, each field of choice replaced."""

from collections.abc import Sequence
from typing import Any

from components.result_rows import ROBUST, WRONG
from components.threats import attack_titled

DETAILS: dict[str, Any] = {
    "attack_library": "pyautoattack 0.2.0",
    "attack_version": "standard",
    "seed": 0,
    "batch_size": 64,
    "precision": "fp32",
    "split": "val",
    "images_digest": "d" * 64,
    "interval_method": "Wilson score interval, 95 %",
    "clean_interval": [0.6, 0.8],
}

ROW: dict[str, Any] = {
    "kind": "adversarial",
    "stage": "adversarial",
    "model": "convnext_tiny",
    "stem": "conv",
    "dataset": "imagenet",
    "resolution": 224,
    "image_set": "drawn with seed 0",
    "norm": "Linf",
    "eps": 4 / 255,
    "attack": "AutoAttack",
    "n": 100,
    "clean_accuracy": 0.7,
    "robust_accuracy": 0.4,
    "interval": [0.31, 0.5],
}

CONDITIONS: dict[str, Any] = {
    "attack_library": "pyautoattack 0.2.0",
    "torch": "2.0.0",
    "device": "cpu",
    "precision": "fp32",
    "seed": 0,
    "batch_size": 64,
    "split": "val",
    "n": 100,
    "images": "100 of the split val, drawn with seed 0",
    "images_digest": "d" * 64,
    "resolutions": [224],
    "crop_ratio": 0.875,
    "radii": "radii are not scaled",
    "interval": "Wilson score interval, 95 %",
    "dataset": "imagenet",
    "classes": 1000,
    "model_run": "a" * 32,
    "model_sha256": "b" * 64,
}


def row_document(*, details: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A row of `results.json`, as JSON."""
    return {**ROW, **changes, "details": {**DETAILS, **(details or {})}}


def worst_case_document(**changes: Any) -> dict[str, Any]:
    """A row of the worst cases, as JSON."""
    kept = {key: value for key, value in ROW.items() if key not in ("norm", "eps")}
    threats = [{"norm": norm, "eps": eps, "attack": "AutoAttack"} for norm, eps in (("Linf", 4 / 255), ("L2", 2.0))]
    return {**kept, "norms": ["Linf", "L2"], "threats": threats, **changes}


def results_document(
    rows: Sequence[dict[str, Any]] = (), union: Sequence[dict[str, Any]] = (), **conditions: Any
) -> dict[str, Any]:
    """`results.json`, as JSON."""
    return {"rows": list(rows), "union": list(union), "conditions": {**CONDITIONS, **conditions}}


def verdicts_document(
    threats: Sequence[tuple[str, float, str]],
    words: Sequence[Sequence[str | None]],
    *,
    resolution: int = 224,
    first_index: int = 0,
) -> dict[str, Any]:
    """`verdicts.json` at one resolution, as JSON.

    Args:
        threats: (norm, radius, title of the attack).
        words: one sequence of verdicts for each image, with one word for each threat.
    """
    keys = {title: attack.key for _, _, title in threats if (attack := attack_titled(title))}
    listed = [
        {
            "norm": norm,
            "eps": eps,
            "attack": keys[title],
            "title": f"{title} {norm}",
            "n": sum(image[position] is not None for image in words),
        }
        for position, (norm, eps, title) in enumerate(threats)
    ]
    images = [_image(first_index + number, verdicts) for number, verdicts in enumerate(words)]
    return {"resolutions": [{"resolution": resolution, "threats": listed, "images": images}]}


def gallery_document(**changes: Any) -> dict[str, Any]:
    """An entry of `gallery.json`, as JSON."""
    files = {name: f"000-{name}.png" for name in ("clean", "adversarial", "difference")}
    seen = {"index": 0, "label": "seven", "clean_prediction": "seven", "adversarial_prediction": "one"}
    attacked = {"norm": "Linf", "eps": 0.15, "attack": "AutoAttack", "broken_by": "APGD-CE", "distance": 0.15}
    return {**files, **seen, **attacked, "amplification": 3.333, "resolution": 32, **changes}


def _image(index: int, verdicts: Sequence[str | None]) -> dict[str, Any]:
    label, broken = index % 10, [word not in (None, ROBUST, WRONG) for word in verdicts]
    clean = label + 1 if WRONG in verdicts else label
    return {
        "index": index,
        "label": label,
        "clean_prediction": clean,
        "verdicts": list(verdicts),
        "predictions": [None if word is None else label + 1 if hit else clean for word, hit in zip(verdicts, broken)],
        "distances": [None if word is None else float(hit) for word, hit in zip(verdicts, broken)],
    }
