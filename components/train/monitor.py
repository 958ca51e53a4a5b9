"""Monitors a training for the signatures of `failure_signatures` and warns, stops or rolls back, as the recipe says.

A rollback restores the state of the last validation without findings (or the initial state) and multiplies the learning
rate by `rollback_lr_factor`. These good states are saved at validations and not by the clock, so that the result of a
training stays a pure function of its configuration and seed, however often it is interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.train.checkpoint_manager import CheckpointManager
from components.train.config_parts import MonitorConfig
from components.train.distributed import Distributed
from components.train.failure_signatures import NON_FINITE, REMEDIES, Finding, findings, is_good
from components.train.state import TrainState, share_state

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
