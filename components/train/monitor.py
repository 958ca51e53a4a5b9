"""Monitors a training for the signatures of failing ones and warns, stops or rolls back, as the recipe says.

The signatures are pure functions of the history of validations. An entry of the history is one epoch. The keys read
here, all accuracies on held-out training images:

clean_accuracy, robust_accuracy    EMA weights, clean and under the validation's attack
robust_accuracy_<norm>             EMA weights, under the validation's attack in another norm
raw_clean_accuracy                 raw (non-averaged) weights, in eval mode
raw_attacked_accuracy              the same under the training attack
raw_robust_accuracy                the same under an attack of equal norm and radius with the validation's steps

A rollback restores the state of the last validation without findings (or the initial state) and multiplies the learning
rate by `rollback_lr_factor`. These good states are saved at validations and not by the clock, so that the result of a
training stays a pure function of its configuration and seed, however often it is interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.train.checkpoint_manager import CheckpointManager
from components.train.config_parts import MonitorConfig
from components.train.distributed import Distributed
from components.train.state import TrainState, share_state

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


_log = logging.getLogger(__name__)


def require_finite(value: float, *, what: str, epoch: int, batch: int) -> None:
    """Stops a training whose figures are NaN or infinite.

    Raises:
        UserError: `value` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is not a finite number",
            where=f"epoch {epoch + 1}, batch {batch}",
            value=value,
            remedy=f"{REMEDIES[NON_FINITE]}; the last good checkpoint is kept",
        )


class Rollback(Exception):
    """The training has to return to its last good state; not an error."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


@dataclass
class TrainingMonitor:
    """Monitors one training. Every worker has one, and all come to the same decisions, since they see the same figures.

    Attributes:
        classes: of the data set.
        images: held-out images of a validation.
        good_states: keeps the good states; None on workers that do not write, or if nothing leads to a rollback.
        warn: called with warnings for the user.
    """

    config: MonitorConfig
    state: TrainState
    distributed: Distributed
    classes: int
    images: int
    good_states: CheckpointManager | None = None
    warn: Callable[[str], None] = _log.warning

    def start(self) -> None:
        """Keeps the initial state as the first good one."""
        if self.state.position.step == 0 and self.state.monitor.num_rollbacks == 0:
            self._keep()

    def _keep(self) -> None:
        if self.good_states is not None:
            self.good_states.save(self.state.snapshot())

    def check_finite(self, figures: dict[str, float]) -> None:
        """Checks the epoch's loss and gradient norm so far. Every worker has to call it after the same step.

        Raises:
            UserError: one of them is not finite, and the recipe says to stop.
            Rollback: one of them is not finite, and the recipe says to roll back.
        """
        place = self.state.position
        for what, name in (("loss", "loss"), ("gradient norm", "grad_norm")):
            # A loss scaler meets infinite gradients on purpose and skips such steps.
            if name not in figures or (name == "grad_norm" and self.state.precision.scaler is not None):
                continue
            if self.config.on_non_finite == "rollback" and not math.isfinite(figures[name]):
                raise Rollback(Finding(NON_FINITE, f"the {what} is not a finite number"))
            require_finite(figures[name], what=what, epoch=place.epoch, batch=place.batch)

    def after_validation(self) -> None:
        """Warns about new findings, then stops, rolls back, or keeps this state as a good one.

        Raises:
            UserError: a signature appeared for which the recipe says to stop.
            Rollback: a signature appeared for which the recipe says to roll back.
        """
        state, config = self.state, self.config
        found = findings(state.history, config, classes=self.classes, images=self.images)
        actions = {finding.signature: getattr(config, f"on_{finding.signature}") for finding in found}
        new = [finding for finding in found if finding.signature not in state.monitor.active_signatures]
        state.monitor.active_signatures = list(actions)
        for finding in new:
            if actions[finding.signature] == "warn":
                self._record(finding, "warn")
                self._warn(f"{finding.sentence}; {REMEDIES[finding.signature]}")
        for finding in found:
            if actions[finding.signature] == "stop":
                raise self._stop(finding)
        for finding in found:
            if actions[finding.signature] == "rollback":
                raise Rollback(finding)
        if is_good(state.history, config, classes=self.classes, images=self.images):
            self._keep()

    def roll_back(self, finding: Finding) -> None:
        """Restores the last good state with a smaller learning rate. Every worker has to call it.

        Raises:
            UserError: there were `max_rollbacks` rollbacks already, or there is no good state.
        """
        record = self.state.monitor
        if record.num_rollbacks >= self.config.max_rollbacks:
            raise self._stop(finding, f" after {record.num_rollbacks} rollbacks")
        record.lr_scale *= self.config.rollback_lr_factor
        record.num_rollbacks += 1
        self._record(finding, "rollback")
        kept, compute_setup = None, self.state.compute_setup
        if self.good_states is not None:
            self.good_states.wait_until_written()
            kept = self.good_states.latest()
        if not self.distributed.broadcast_json(kept is not None):
            raise self._stop(finding, ", and there is no good state to return to")
        if kept is not None:
            self.state.restore(kept)
        share_state(self.state, self.distributed, resumed=True)
        # The good state's own record ends where it was taken.
        self.state.monitor, self.state.compute_setup = record, compute_setup
        record.active_signatures = []
        self._warn(
            f"{finding.sentence}; rolling back to the end of epoch {self.state.position.epoch} "
            f"with {record.lr_scale:g} of the learning rate"
        )

    def _record(self, finding: Finding, action: str) -> None:
        event: dict[str, Any] = {
            "epoch": self._epoch(finding),
            "signature": finding.signature,
            "sentence": finding.sentence,
            "action": action,
            "lr_scale": self.state.monitor.lr_scale,
        }
        self.state.monitor.events.append(event)

    def _epoch(self, finding: Finding) -> int:
        """Returns a finding's epoch, from 1: the current one for figures, the one just ended for validations."""
        return self.state.position.epoch + (finding.signature == NON_FINITE)

    def _warn(self, text: str) -> None:
        if self.distributed.is_main:
            self.warn(text)

    def _stop(self, finding: Finding, why: str = "") -> UserError:
        return UserError(
            f"{finding.sentence}{why}",
            where=f"epoch {self._epoch(finding)}",
            remedy=f"{REMEDIES[finding.signature]}; the last good checkpoint is kept",
        )
