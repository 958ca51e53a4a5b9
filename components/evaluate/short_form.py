"""What the short attack says, read off a run of the whole one.

AutoAttack begins with APGD-CE and APGD-T, from the same seeds and on the same blocks as the short form APGD-CE+APGD-T.
An image that only FAB-T or Square broke is one that the short form would have left robust. So a model that was given
the whole attack can stand beside one that was given the short form, without attacking it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from components.evaluate.autoattack import ROBUST
from components.evaluate.library import STAGES, TITLES
from components.evaluate.outcomes import Outcome

WHOLE, SHORT = "autoattack", "apgd-ce+apgd-t"


def short_form(outcome: Outcome) -> Outcome | None:
    """The outcome of the short form, or None where the attack was another one than the whole.

    Predictions and distances of images that the short form leaves robust are those of the clean image.
    """
    if outcome.threat.attack != WHOLE:
        return None
    later = [TITLES[name] for name in STAGES[WHOLE] if name not in STAGES[SHORT]]
    spared = np.isin(outcome.verdict, later)
    parts = [part for part in outcome.parts if part["attack"] not in later]
    return replace(
        outcome,
        threat=outcome.threat.model_copy(update={"attack": SHORT}),
        verdict=np.where(spared, ROBUST, outcome.verdict),
        prediction=np.where(spared, outcome.clean_prediction, outcome.prediction),
        distance=np.where(spared, 0.0, outcome.distance),
        parts=parts,
        seconds=sum(float(part["seconds"]) for part in parts),
        shown=[],
    )


def short_forms(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The short forms that can be read off, but for those that were measured on their own."""
    measured = {(o.resolution, o.threat.norm, o.threat.eps) for o in outcomes if o.threat.attack == SHORT}
    found = [short_form(o) for o in outcomes]
    return [o for o in found if o and (o.resolution, o.threat.norm, o.threat.eps) not in measured]
