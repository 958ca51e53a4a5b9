"""The signatures of trainings that went wrong, as pure functions of the history of probes.

An entry of the history is one epoch. What is read here, all accuracies on held-out training images:

clean_accuracy, robust_accuracy    averaged weights, clean and under the probe's attack
robust_accuracy_<norm>             averaged weights, under the probe's attack in another norm
live_clean_accuracy                weights being trained, in eval mode
live_attacked_accuracy             the same under the training attack
live_robust_accuracy               the same under an attack of equal norm and radius with the probe's steps
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.train.config_parts import HealthConfig

History = Sequence[Mapping[str, Any]]

NON_FINITE = "non_finite"
REMEDIES: dict[str, str] = {
    "chance": "lower lr, start from a clean model, let the radius grow (attack.eps_warmup), or check the labels",
    "collapse": "lower lr, lengthen warmup_epochs, start from a clean model, or use a ConvStem",
    "catastrophic_overfitting": "take more attack.steps, a random start, or a smaller attack.eps",
    "overfitting": "train for fewer epochs, augment more, or keep the best probe (select: best)",
    "poor_generalisation": "tune to the other norm in a radius stage, or train with a smaller attack.eps",
    NON_FINITE: "lower lr, lengthen warmup_epochs, or train in fp32",
}
"""Signature -> what to do about it."""

_MATCHED = 0.9
"""The training attack may leave this share of what it left before and still not count as having succeeded more."""


@dataclass(frozen=True)
class Finding:
    """A signature seen: its name, and a sentence with the figures."""

    signature: str
    sentence: str


def findings(history: History, config: HealthConfig, *, classes: int, images: int) -> list[Finding]:
    """What the newest probe shows, the gravest first.

    Args:
        history: entries in order; those without a probe are passed over.
        classes: of the data set; 1 / classes is chance.
        images: held-out images a probe looked at; differences within their noise do not count.
    """
    sentences = {
        "chance": at_chance(history, config, classes=classes, images=min(images, config.images)),
        "collapse": collapsed(history, config, classes=classes),
        "catastrophic_overfitting": overfitted_catastrophically(history, config, classes=classes),
        "overfitting": overfitted(history, config, images=images),
        "poor_generalisation": generalises_poorly(history, config, classes=classes),
    }
    if sentences["catastrophic_overfitting"]:
        sentences["overfitting"] = ""
    return [Finding(name, sentence) for name, sentence in sentences.items() if sentence]


def _probes(history: History) -> list[Mapping[str, Any]]:
    return [entry for entry in history if entry.get("clean_accuracy") is not None]


def guesses(entry: Mapping[str, Any], *, classes: int, images: int) -> bool:
    """Whether the weights being trained were no better than guessing: within two standard errors of chance."""
    chance = 1 / classes
    noise = 2 * math.sqrt(chance * (1 - chance) / max(images, 1))
    return entry.get("live_clean_accuracy", 1.0) <= chance + noise


def at_chance(history: History, config: HealthConfig, *, classes: int, images: int) -> str:
    """A sentence where training never did better than guessing in its first `chance_epochs`; else empty."""
    probes = _probes(history)
    if not probes or classes < 2 or probes[-1]["epoch"] < config.chance_epochs:
        return ""
    if not all(guesses(entry, classes=classes, images=images) for entry in probes):
        return ""
    last = probes[-1]
    return (
        f"training never left chance: after {last['epoch']} epochs held-out clean accuracy is "
        f"{last['live_clean_accuracy']:.1%} of {classes} classes"
    )


def collapsed(history: History, config: HealthConfig, *, classes: int) -> str:
    """A sentence where clean and robust accuracy have both lost `collapse_drop` of their best; else empty.

    Twice chance is the least that there must have been to lose.
    """
    probes = _probes(history)
    if len(probes) < 2 or not _lost(probes, config.collapse_drop, classes):
        return ""
    best, last = max(entry["clean_accuracy"] for entry in probes), probes[-1]["clean_accuracy"]
    return f"training collapsed: held-out clean accuracy fell from {best:.1%} to {last:.1%}"


def _lost(probes: History, drop: float, classes: int) -> bool:
    """Whether clean and, where it is measured, robust accuracy have both lost `drop` of their best."""
    clean, robust = (
        [entry[name] for entry in probes if entry.get(name) is not None]
        for name in ("clean_accuracy", "robust_accuracy")
    )
    fell = [values[-1] <= (1 - drop) * max(values) for values in (clean, robust) if values]
    return max(clean) > 2 / classes and all(fell)


def sound(history: History, config: HealthConfig, *, classes: int, images: int) -> bool:
    """Whether the newest probe's state is worth going back to: no guessing, and not half-way to a collapse."""
    probes = _probes(history)
    guessing = guesses(probes[-1], classes=classes, images=min(images, config.images))
    return not guessing and not _lost(probes, config.collapse_drop / 2, classes)


def overfitted_catastrophically(history: History, config: HealthConfig, *, classes: int) -> str:
    """A sentence where the network resists the training attack alone; else empty.

    A stronger attack in the same ball has to take `catastrophic_drop` of what the training attack leaves right. With
    an earlier probe to compare to, the training attack must also succeed about as little as then, and the stronger
    one more: where both succeed more, training is failing in another way.
    """
    seen = [entry for entry in _probes(history) if entry.get("live_robust_accuracy") is not None]
    if not seen:
        return ""
    *before, last = seen
    attacked, robust = last["live_attacked_accuracy"], last["live_robust_accuracy"]
    if attacked <= 2 / classes or robust > (1 - config.catastrophic_drop) * attacked:
        return ""
    best = max(before, key=lambda entry: entry["live_robust_accuracy"], default=None)
    if best is not None and (
        attacked < _MATCHED * best["live_attacked_accuracy"] or robust >= best["live_robust_accuracy"]
    ):
        return ""
    return (
        f"catastrophic overfitting: under the training attack {attacked:.1%} of the held-out images stay right, "
        f"under a stronger one in the same ball {robust:.1%}"
    )


def overfitted(history: History, config: HealthConfig, *, images: int) -> str:
    """A sentence where robust accuracy lost `overfitting_drop` (absolute) since its best while clean accuracy rose.

    The loss must also exceed two standard errors of the difference between two shares of `images` images. Clean
    training is not judged: it loses what little robustness it has by chance.
    """
    seen = [entry for entry in _probes(history) if entry.get("robust_accuracy") is not None]
    if len(seen) < 2 or seen[-1].get("live_attacked_accuracy") is None:
        return ""
    *before, last = seen
    best = max(before, key=lambda entry: entry["robust_accuracy"])
    top, now = best["robust_accuracy"], last["robust_accuracy"]
    noise = 2 * math.sqrt((top * (1 - top) + now * (1 - now)) / max(images, 1))
    if last["clean_accuracy"] <= best["clean_accuracy"] or top - now < max(config.overfitting_drop, noise):
        return ""
    return (
        f"overfitting: since epoch {best['epoch']} held-out robust accuracy fell from {top:.1%} to {now:.1%} while "
        f"clean accuracy rose from {best['clean_accuracy']:.1%} to {last['clean_accuracy']:.1%}"
    )


def generalises_poorly(history: History, config: HealthConfig, *, classes: int) -> str:
    """A sentence where robust accuracy is well above chance, but in other norms next to nothing; else empty."""
    probes = _probes(history)
    if not probes:
        return ""
    main, prefix = probes[-1].get("robust_accuracy"), "robust_accuracy_"
    if main is None or main <= 2 / classes:
        return ""
    others = {key.removeprefix(prefix): value for key, value in probes[-1].items() if key.startswith(prefix)}
    low = {norm: value for norm, value in others.items() if value <= config.other_norms_share * main}
    if not low:
        return ""
    told = ", ".join(f"{value:.1%} in {norm}" for norm, value in low.items())
    return f"poor generalisation: robust accuracy is {main:.1%} in the training norm and {told}"
