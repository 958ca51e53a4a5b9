"""The signatures of failing trainings, as pure functions of the history of validations.

An entry of the history is one epoch. The keys read here, all accuracies on held-out training images:

clean_accuracy, robust_accuracy    EMA weights, clean and under the validation's attack
robust_accuracy_<norm>             EMA weights, under the validation's attack in another norm
raw_clean_accuracy                 raw (non-averaged) weights, in eval mode
raw_attacked_accuracy              the same under the training attack
raw_robust_accuracy                the same under an attack of equal norm and radius with the validation's steps
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.train.config_parts import MonitorConfig

History = Sequence[Mapping[str, Any]]

NON_FINITE = "non_finite"
REMEDIES: dict[str, str] = {
    "chance": "lower lr, start from a clean model, let the radius grow (attack.eps_warmup_epochs), or check the labels",
    "collapse": "lower lr, lengthen warmup_epochs, start from a clean model, or use a ConvStem",
    "catastrophic_overfitting": "use more attack.steps, a random start, or a smaller attack.eps",
    "overfitting": "train for fewer epochs, augment more, or keep the best weights (keep_weights: best)",
    "poor_generalisation": "fine-tune to the other norm in a radius stage, or train with a smaller attack.eps",
    NON_FINITE: "lower lr, lengthen warmup_epochs, or train in fp32",
}
"""Signature -> remedy."""

_MATCHED = 0.9
"""The training attack counts as more successful only if it leaves less than this share of what it left before."""


@dataclass(frozen=True)
class Finding:
    """A signature that was found: its name, and a sentence with the figures."""

    signature: str
    sentence: str


def findings(history: History, config: MonitorConfig, *, classes: int, images: int) -> list[Finding]:
    """Returns the findings of the newest validation, the most serious first.

    Args:
        history: entries in order; those without a validation are skipped.
        classes: of the data set; 1 / classes is chance.
        images: held-out images of a validation; differences within their noise do not count.
    """
    sentences = {
        "chance": at_chance(history, config, classes=classes, images=min(images, config.num_images)),
        "collapse": collapsed(history, config, classes=classes),
        "catastrophic_overfitting": overfitted_catastrophically(history, config, classes=classes),
        "overfitting": overfitted(history, config, images=images),
        "poor_generalisation": generalises_poorly(history, config, classes=classes),
    }
    if sentences["catastrophic_overfitting"]:
        sentences["overfitting"] = ""
    return [Finding(name, sentence) for name, sentence in sentences.items() if sentence]


def _validated(history: History) -> list[Mapping[str, Any]]:
    return [entry for entry in history if entry.get("clean_accuracy") is not None]


def guesses(entry: Mapping[str, Any], *, classes: int, images: int) -> bool:
    """Whether the raw weights were no better than guessing: within two standard errors of chance."""
    chance = 1 / classes
    noise = 2 * math.sqrt(chance * (1 - chance) / max(images, 1))
    return entry.get("raw_clean_accuracy", 1.0) <= chance + noise


def at_chance(history: History, config: MonitorConfig, *, classes: int, images: int) -> str:
    """Returns a sentence if training was never better than guessing after `chance_epochs`; else an empty text."""
    validated = _validated(history)
    if not validated or classes < 2 or validated[-1]["epoch"] < config.chance_epochs:
        return ""
    if not all(guesses(entry, classes=classes, images=images) for entry in validated):
        return ""
    last = validated[-1]
    return (
        f"training never left chance: after {last['epoch']} epochs held-out clean accuracy is "
        f"{last['raw_clean_accuracy']:.1%} of {classes} classes"
    )


def collapsed(history: History, config: MonitorConfig, *, classes: int) -> str:
    """Returns a sentence if clean and robust accuracy have both lost `collapse_drop` of their best; else an empty text.

    The best clean accuracy must have been above twice chance.
    """
    validated = _validated(history)
    if len(validated) < 2 or not _lost(validated, config.collapse_drop, classes):
        return ""
    best, last = max(entry["clean_accuracy"] for entry in validated), validated[-1]["clean_accuracy"]
    return f"training collapsed: held-out clean accuracy fell from {best:.1%} to {last:.1%}"


def _lost(validated: History, drop: float, classes: int) -> bool:
    """Whether clean and, if measured, robust accuracy have both lost `drop` of their best."""
    clean, robust = (
        [entry[name] for entry in validated if entry.get(name) is not None]
        for name in ("clean_accuracy", "robust_accuracy")
    )
    fell = [values[-1] <= (1 - drop) * max(values) for values in (clean, robust) if values]
    return max(clean) > 2 / classes and all(fell)


def is_good(history: History, config: MonitorConfig, *, classes: int, images: int) -> bool:
    """Whether the newest validation's state is fit for a rollback: no guessing, and not half-way to a collapse."""
    validated = _validated(history)
    guessing = guesses(validated[-1], classes=classes, images=min(images, config.num_images))
    return not guessing and not _lost(validated, config.collapse_drop / 2, classes)


def overfitted_catastrophically(history: History, config: MonitorConfig, *, classes: int) -> str:
    """Returns a sentence if the network resists the training attack alone; else an empty text.

    A stronger attack in the same ball has to break `catastrophic_drop` of the images that resist the training attack.
    Compared to the best earlier validation, the training attack must also succeed about as rarely as then, and the
    stronger one more often: if both succeed more often, training is failing in another way.
    """
    seen = [entry for entry in _validated(history) if entry.get("raw_robust_accuracy") is not None]
    if not seen:
        return ""
    *before, last = seen
    attacked, robust = last["raw_attacked_accuracy"], last["raw_robust_accuracy"]
    if attacked <= 2 / classes or robust > (1 - config.catastrophic_drop) * attacked:
        return ""
    best = max(before, key=lambda entry: entry["raw_robust_accuracy"], default=None)
    if best is not None and (
        attacked < _MATCHED * best["raw_attacked_accuracy"] or robust >= best["raw_robust_accuracy"]
    ):
        return ""
    return (
        f"catastrophic overfitting: under the training attack {attacked:.1%} of the held-out images stay right, "
        f"under a stronger one in the same ball {robust:.1%}"
    )


def overfitted(history: History, config: MonitorConfig, *, images: int) -> str:
    """Returns a sentence if robust accuracy lost `overfitting_drop` (absolute) while clean accuracy rose.

    The loss must also exceed two standard errors of the difference between two shares of `images` images. Clean
    training is not judged: it loses by chance the little robustness it has.
    """
    seen = [entry for entry in _validated(history) if entry.get("robust_accuracy") is not None]
    if len(seen) < 2 or seen[-1].get("raw_attacked_accuracy") is None:
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


def generalises_poorly(history: History, config: MonitorConfig, *, classes: int) -> str:
    """Returns a sentence if robust accuracy is above twice chance, but hardly any is left in other norms."""
    validated = _validated(history)
    if not validated:
        return ""
    main, prefix = validated[-1].get("robust_accuracy"), "robust_accuracy_"
    if main is None or main <= 2 / classes:
        return ""
    others = {key.removeprefix(prefix): value for key, value in validated[-1].items() if key.startswith(prefix)}
    low = {norm: value for norm, value in others.items() if value <= config.extra_norms_share * main}
    if not low:
        return ""
    listed = ", ".join(f"{value:.1%} in {norm}" for norm, value in low.items())
    return f"poor generalisation: robust accuracy is {main:.1%} in the training norm and {listed}"
