"""What a recipe says about trainings that go wrong: which signatures are watched, and what follows from each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.train.config_parts import Part

Action = Literal["warn", "stop", "back"]
"""Say it; end the stage; or go back to the last good probe and go on with a smaller step."""


class HealthConfig(Part):
    """What happens when training goes wrong. Accuracies are those on held-out training images."""

    on_collapse: Action = Field(default="warn", description="clean and robust accuracy fell together")
    on_catastrophic_overfitting: Action = Field(
        default="warn", description="the training attack succeeds less, a stronger one more"
    )
    on_overfitting: Action = Field(default="warn", description="clean accuracy rises while robust accuracy falls")
    on_poor_generalisation: Action = Field(
        default="warn", description="robust in the training norm, next to nothing in probe.other_norms"
    )
    on_chance: Action = Field(default="warn", description="never better than guessing")
    on_non_finite: Literal["stop", "back"] = Field(default="stop", description="loss or gradient is NaN or infinite")
    collapse_drop: float = Field(default=0.5, gt=0, lt=1, description="share of the best probe that has to be lost")
    catastrophic_drop: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of what the training attack leaves right that the stronger attack has to take",
    )
    overfitting_drop: float = Field(default=0.1, gt=0, lt=1, description="robust accuracy that has to be lost")
    other_norms_share: float = Field(
        default=0.1, gt=0, lt=1, description="robust accuracy in another norm, as a share of that in the training norm"
    )
    chance_epochs: int = Field(default=5, ge=1, description="epochs that a training may guess")
    images: int = Field(
        default=256, ge=1, description="about so many held-out images for the look at the weights being trained"
    )
    back_lr: float = Field(default=0.5, gt=0, lt=1, description="factor on the learning rate each time it goes back")
    back_times: int = Field(default=2, ge=1, le=20, description="how often a training goes back before it stops")

    @property
    def goes_back(self) -> bool:
        """Whether any signature makes the training go back, so that good states have to be kept."""
        return "back" in (getattr(self, name) for name in type(self).model_fields if name.startswith("on_"))
