"""Evaluations with every image's verdict, as the quickstart leaves them: the same first images, other models."""

from __future__ import annotations

from typing import Any

from components.report import ReportStage
from components.statistics import wilson

TITLES = {"autoattack": "AutoAttack", "apgd-ce+apgd-t": "APGD-CE+APGD-T", "apgd-ce": "APGD-CE"}
Threats = dict[tuple[str, float, str], list[str | None]]


def kept(pattern: str, broken_by: str = "APGD-CE") -> list[str | None]:
    """ "1" is robust, "0" broken, "f" broken by FAB-T alone; anything else was not attacked."""
    words = {"1": "robust", "0": broken_by, "f": "FAB-T"}
    return [words.get(letter) for letter in pattern]


def evaluation(
    name: str, threats: Threats, *, kind: str = "adversarial", stem: str = "conv", first: int = 0, **conditions: Any
) -> ReportStage:
    """The evaluation of one model; `first` shifts the images, so that other ones are measured."""
    n = max(len(words) for words in threats.values())
    images = [
        {
            "index": 7 * (first + i),
            "label": i % 10,
            "clean_prediction": i % 10,
            "verdicts": [words[i] if i < len(words) else None for words in threats.values()],
        }
        for i in range(n)
    ]
    listed = [{"norm": norm, "eps": eps, "attack": attack} for norm, eps, attack in threats]
    return ReportStage(
        name=f"evaluate-{name}",
        kind="evaluate",
        config={"model": name},
        rows=[_row(name, kind, stem, key, words) for key, words in threats.items()],
        conditions={
            "dataset": "digits",
            "split": "val",
            "attack_library": "pyautoattack 0.2.0",
            "precision": "fp32",
            "images_digest": f"{first} to {n}",
            **conditions,
        },
        verdicts={"resolutions": [{"resolution": 32, "threats": listed, "images": images}]},
        data="d" * 64,
    )


def short_row(stage: ReportStage) -> dict[str, Any]:
    """The row of the short form, as `evaluate` reads it off a run of the whole attack."""
    (whole,) = [row for row in stage.rows if row["attack"] == "AutoAttack"]
    words = [image["verdicts"][0] for image in stage.verdicts["resolutions"][0]["images"]]
    robust = sum(word in {"robust", "FAB-T", "Square"} for word in words)
    return {**whole, "attack": "APGD-CE+APGD-T", "robust_accuracy": robust / len(words)}


def _row(name: str, kind: str, stem: str, key: tuple[str, float, str], words: list[str | None]) -> dict[str, Any]:
    norm, eps, attack = key
    known = [word for word in words if word is not None]
    robust, n = sum(word == "robust" for word in known), len(known)
    return {
        "stage": kind,
        "name": name,
        "model": "convnext_micro",
        "stem": stem,
        "dataset": "digits",
        "resolution": 32,
        "norm": norm,
        "eps": eps,
        "attack": TITLES[attack],
        "n": n,
        "clean_accuracy": 1.0,
        "robust_accuracy": robust / n,
        "interval": list(wilson(robust, n)),
    }
