"""Figures with their conditions: rows, worst cases, and every image's verdicts, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from components.evaluate.config import ATTACK_TITLES, EvaluateConfig
from components.evaluate.images import ImageSet
from components.evaluate.library import LIBRARY, targets, targets_note
from components.evaluate.outcomes import Outcome
from components.evaluate.statistics import survives_all
from components.evaluate.sweep import RADII_NOTE
from components.models.weights import ModelCard
from components.statistics import INTERVAL_NAME, wilson

PRECISION = "fp32"


@dataclass(frozen=True)
class Subject:
    """Whose figures these are.

    Attributes:
        stage, name: kind and name of the training stage.
        model_sha256: of the weights.
        classes: class names in label order.
    """

    stage: str
    name: str
    card: ModelCard
    model_sha256: str
    dataset: str
    classes: tuple[str, ...]
    run_id: str = ""

    def columns(self, resolution: int) -> dict[str, Any]:
        """What every row of this model begins with."""
        return {
            "stage": self.stage,
            "name": self.name,
            "model": self.card.name,
            "stem": self.card.stem,
            "dataset": self.dataset,
            "resolution": resolution,
        }


def row(subject: Subject, outcome: Outcome, config: EvaluateConfig, images: ImageSet) -> dict[str, Any]:
    """One figure: accuracies as fractions, `interval` [low, high] of the robust accuracy, the rest in `details`."""
    robust, right, threat = int(outcome.robust.sum()), int(outcome.right.sum()), outcome.threat
    return {
        **subject.columns(outcome.resolution),
        "norm": threat.norm,
        "eps": threat.eps,
        "attack": ATTACK_TITLES[threat.attack],
        "n": outcome.n,
        "clean_accuracy": right / outcome.n,
        "robust_accuracy": robust / outcome.n,
        "interval": list(wilson(robust, outcome.n)),
        "details": {
            "attack_library": LIBRARY,
            "attack_version": "standard" if threat.attack == "autoattack" else "parts of standard",
            "targets": targets(threat, subject.card.num_classes),
            "targets_note": targets_note(threat, subject.card.num_classes),
            "seed": config.seed,
            "batch_size": config.batch_size,
            "precision": PRECISION,
            "images_digest": images.digest,
            "interval_method": INTERVAL_NAME,
            "clean_interval": list(wilson(right, outcome.n)),
            "parts": outcome.parts,
            "seconds": outcome.seconds,
            "unverified": outcome.unverified,
            "narrow_margins": outcome.narrow,
            "largest_distance": float(outcome.distance.max()),
            "warnings": outcome.warnings,
        },
    }


def union_rows(subject: Subject, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Worst case over the norms, image by image, for each resolution that has threats in several norms.

    One radius a norm: the first one given for it, so that models evaluated at further radii too are judged by the same
    threats. Of several attacks at that radius the strongest counts. Where threats have different numbers of images, the
    images common to all are taken (the first ones).
    """
    rows = []
    for resolution in dict.fromkeys(outcome.resolution for outcome in outcomes):
        here = _one_a_norm([outcome for outcome in outcomes if outcome.resolution == resolution])
        if len(here) < 2:
            continue
        n = min(outcome.n for outcome in here)
        robust = int(survives_all([outcome.robust[:n] for outcome in here]).sum())
        attacks = dict.fromkeys(ATTACK_TITLES[outcome.threat.attack] for outcome in here)
        rows.append(
            {
                **subject.columns(resolution),
                "norms": list(dict.fromkeys(outcome.threat.norm for outcome in here)),
                "threats": [
                    {"norm": o.threat.norm, "eps": o.threat.eps, "attack": ATTACK_TITLES[o.threat.attack]} for o in here
                ],
                "attack": " / ".join(attacks),
                "n": n,
                "clean_accuracy": float(survives_all([outcome.right[:n] for outcome in here]).mean()),
                "robust_accuracy": robust / n,
                "interval": list(wilson(robust, n)),
            }
        )
    return rows


def _one_a_norm(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """For each norm the outcome at the radius that comes first, by the strongest attack."""
    strength = list(ATTACK_TITLES)
    chosen: dict[str, Outcome] = {}
    for outcome in outcomes:
        there = chosen.setdefault(outcome.threat.norm, outcome)
        stronger = strength.index(outcome.threat.attack) < strength.index(there.threat.attack)
        if outcome.threat.eps == there.threat.eps and stronger:
            chosen[outcome.threat.norm] = outcome
    return list(chosen.values())


def conditions(
    subject: Subject, config: EvaluateConfig, images: ImageSet, resolutions: Sequence[int], device: str
) -> dict[str, Any]:
    """What holds for every figure of this evaluation; figures with other conditions are not to be compared."""
    return {
        "attack_library": LIBRARY,
        "torch": torch.__version__,
        "device": device,
        "precision": PRECISION,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "split": config.split,
        "n": images.n,
        "images": f"{images.n} of the split {config.split}, drawn with seed {config.seed}",
        "images_digest": images.digest,
        "resolutions": list(resolutions),
        "crop_ratio": subject.card.crop_ratio,
        "radii": RADII_NOTE,
        "interval": INTERVAL_NAME,
        "dataset": subject.dataset,
        "classes": len(subject.classes),
        "model_run": subject.run_id,
        "model_sha256": subject.model_sha256,
    }


def verdicts(images: ImageSet, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Every image's fate: its row in the encoded split, label, clean class, and one verdict for each threat."""
    by_resolution: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        by_resolution.setdefault(outcome.resolution, []).append(outcome)
    return {
        "verdicts": "robust; wrong: misclassified as it is; else the part of the attack that broke it",
        "resolutions": [
            {
                "resolution": resolution,
                "threats": [{**o.threat.model_dump(exclude={"n"}), "title": o.threat.title, "n": o.n} for o in here],
                "images": [_image(images, position, here) for position in range(max(o.n for o in here))],
            }
            for resolution, here in by_resolution.items()
        ],
    }


def _image(images: ImageSet, position: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    seen = [outcome if position < outcome.n else None for outcome in outcomes]
    first = next(outcome for outcome in seen if outcome is not None)
    return {
        "index": int(images.indices[position]),
        "label": int(images.labels[position]),
        "clean_prediction": int(first.clean_prediction[position]),
        "verdicts": [None if o is None else str(o.verdict[position]) for o in seen],
        "predictions": [None if o is None else int(o.prediction[position]) for o in seen],
        "distances": [None if o is None else round(float(o.distance[position]), 7) for o in seen],
    }
