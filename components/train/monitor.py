"""Watches a training for the signatures of `signatures` and does what the recipe says: warn, stop, or go back.

Going back means: the state after the last probe that showed nothing wrong (or the very first state), a learning rate
smaller by `back_lr`, and on from there. Those good states are taken at probes and not by the clock, so that what a
training computes stays a pure function of its configuration and seed, however often it is interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.train.checkpoint_manager import CheckpointStore, said_on_stderr
from components.train.config_parts import HealthConfig
from components.train.distributed import World
from components.train.failure_signatures import NON_FINITE, REMEDIES, Finding, findings, sound
from components.train.state import TrainState, share_state


def require_finite(value: float, *, what: str, epoch: int, batch: int) -> None:
    """Stops a training whose figures are no numbers any more.

    Raises:
        UserError: `value` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is no longer a finite number",
            where=f"epoch {epoch + 1}, batch {batch}",
            value=value,
            remedy=f"{REMEDIES[NON_FINITE]}; the last good checkpoint is kept",
        )


class GoBack(Exception):
    """The training has to go back to its last good state; not an error."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


@dataclass
class Guard:
    """One training's watch; all workers hold one and come to the same decisions, for they see the same figures.

    Attributes:
        classes: of the data set.
        images: held-out images of a probe.
        good: where good states are kept; None on workers that do not write, or where nothing makes it go back.
        warn: told what people should know.
    """

    config: HealthConfig
    state: TrainState
    world: World
    classes: int
    images: int
    good: CheckpointStore | None = None
    warn: Callable[[str], None] = said_on_stderr

    def begin(self) -> None:
        """Keeps the very first state as the first good one."""
        if self.state.position.step == 0 and self.state.health.backs == 0:
            self._keep()

    def _keep(self) -> None:
        if self.good is not None:
            self.good.save(self.state.snapshot())

    def check_finite(self, figures: dict[str, float]) -> None:
        """Looks at the epoch's loss and gradient norm so far. Every worker has to call it after the same step.

        Raises:
            UserError: one of them is no number, and the recipe says to stop.
            GoBack: the same, and it says to go back.
        """
        place = self.state.position
        for what, name in (("loss", "loss"), ("gradient norm", "grad_norm")):
            # A loss scaler meets infinite gradients on purpose and leaves such steps out.
            if name not in figures or (name == "grad_norm" and self.state.precision.scaler is not None):
                continue
            if self.config.on_non_finite == "back" and not math.isfinite(figures[name]):
                raise GoBack(Finding(NON_FINITE, f"the {what} is no longer a finite number"))
            require_finite(figures[name], what=what, epoch=place.epoch, batch=place.batch)

    def judge(self) -> None:
        """Called after every probe: says what is new, then stops, goes back, or keeps this state as a good one.

        Raises:
            UserError: a signature appeared for which the recipe says to stop.
            GoBack: one for which it says to go back.
        """
        state, config = self.state, self.config
        seen = findings(state.history, config, classes=self.classes, images=self.images)
        actions = {finding.signature: getattr(config, f"on_{finding.signature}") for finding in seen}
        new = [finding for finding in seen if finding.signature not in state.health.present]
        state.health.present = list(actions)
        for finding in new:
            if actions[finding.signature] == "warn":
                self._record(finding, "warn")
                self._say(f"{finding.sentence}; {REMEDIES[finding.signature]}")
        for finding in seen:
            if actions[finding.signature] == "stop":
                raise self._stop(finding)
        for finding in seen:
            if actions[finding.signature] == "back":
                raise GoBack(finding)
        if sound(state.history, config, classes=self.classes, images=self.images):
            self._keep()

    def go_back(self, finding: Finding) -> None:
        """Puts the last good state into place with a smaller learning rate. Every worker has to call it.

        Raises:
            UserError: it has gone back often enough, or there is no good state.
        """
        health = self.state.health
        if health.backs >= self.config.back_times:
            raise self._stop(finding, f" after going back {health.backs} times")
        health.lr_scale *= self.config.back_lr
        health.backs += 1
        self._record(finding, "back")
        kept, computing = None, self.state.computing
        if self.good is not None:
            self.good.settle()
            kept = self.good.latest()
        if not self.world.facts_from_leader(kept is not None):
            raise self._stop(finding, ", and no good state is left to go back to")
        if kept is not None:
            self.state.restore(kept)
        share_state(self.state, self.world, resumed=True)
        # The good state's own record ends where it was taken.
        self.state.health, self.state.computing = health, computing
        health.present = []
        self._say(
            f"{finding.sentence}; going back to the end of epoch {self.state.position.epoch} "
            f"with {health.lr_scale:g} of the learning rate"
        )

    def _record(self, finding: Finding, action: str) -> None:
        event: dict[str, Any] = {
            "epoch": self._epoch(finding),
            "signature": finding.signature,
            "sentence": finding.sentence,
            "action": action,
            "lr_scale": self.state.health.lr_scale,
        }
        self.state.health.events.append(event)

    def _epoch(self, finding: Finding) -> int:
        """The epoch a finding belongs to, from 1: the present one for figures, the one just ended for probes."""
        return self.state.position.epoch + (finding.signature == NON_FINITE)

    def _say(self, text: str) -> None:
        if self.world.leads:
            self.warn(text)

    def _stop(self, finding: Finding, why: str = "") -> UserError:
        return UserError(
            f"{finding.sentence}{why}",
            where=f"epoch {self._epoch(finding)}",
            remedy=f"{REMEDIES[finding.signature]}; the last good checkpoint is kept",
        )
