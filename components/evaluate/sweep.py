"""Evaluation at several test resolutions: the same weights, images, threats and radii; only the side changes.

The radii stay fixed, as in the paper (section on test-time resolution). For L2 and L1 that makes part of a gain
geometric: the same budget is spread over more pixels.
"""

from __future__ import annotations

from components.evaluate.config import EvaluateConfig
from components.evaluate.library import refuse_impossible
from components.models.resolution import set_resolution
from components.models.weights import ModelCard, build_from_card

RADII_NOTE = "radii are those of the threat at every resolution; L2 and L1 budgets are not scaled with the pixels"


def resolutions(config: EvaluateConfig, card: ModelCard) -> tuple[int, ...]:
    """The sides to evaluate at, in px, once everything asked for is known to be possible at each of them.

    Raises:
        UserError: a side that the network cannot take, a threat that the library cannot measure there, or too few
            classes for a threat.
    """
    sides = config.resolutions_or(card.resolution)
    model = build_from_card(card, device="meta")
    for side in sides:
        set_resolution(model, side)
        for threat in config.threats:
            refuse_impossible(threat, num_classes=card.num_classes, resolution=side)
    return sides
