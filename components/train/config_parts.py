"""The parts of a training stage's configuration: network, attack, and the held-out check.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.

What a recipe says about trainings that go wrong: which signatures are watched, and what follows from each.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.errors import UserError
from components.threats import Radius, check_radius


class Part(BaseModel):
    """Frozen, refuses unknown fields, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Part):
    """Which network a stage builds."""

    name: str = Field(
        default="convnext_micro", description="timm name of the network without its stem, e.g. convnext_tiny"
    )
    stem: Literal["patch", "conv"] = Field(
        default="patch", description="PatchStem as published, or the paper's ConvStem"
    )
    normalize: Literal["tag"] | tuple[tuple[float, float, float], tuple[float, float, float]] | None = Field(
        default=None,
        description="mean and standard deviation of a first layer, in [0, 1] units; tag: those that timm names for the "
        "first weights' tag; none: raw pixels (code)",
    )
    kwargs: dict[str, Any] = Field(default={}, description="further arguments of timm.create_model")


class AttackConfig(Part):
    """How adversarial examples are made in training."""

    norm: Literal["Linf", "L2", "L1"] = Field(
        default="Linf", description="norm of the ball (paper: Linf; L2, L1 for tuning)"
    )
    eps: Radius = Field(
        default=4 / 255, gt=0, description="radius in [0, 1] pixel units, e.g. 4/255 (paper), L2 2, L1 75"
    )
    steps: int = Field(default=2, ge=1, le=1000, description="gradient steps (paper: 2; 1 and 3 in its ablation)")
    form: Literal["best", "last"] = Field(
        default="best", description="iterate returned: of largest loss (code), or the last one, one forward cheaper"
    )
    kind: Literal["apgd", "fgsm"] = Field(default="apgd", description="apgd (paper), or fgsm with a random start")
    random_start: bool = Field(default=True, description="fgsm only: start at a random point (Wong et al. 2020)")
    fgsm_step: float = Field(default=1.25, gt=0, le=4, description="fgsm only: step in units of eps (Wong et al. 2020)")
    loss: Literal["ce", "trades"] = Field(
        default="ce", description="ce on adversarial images (paper), or TRADES (2019)"
    )
    beta: float = Field(default=6.0, ge=0, description="trades only: weight of the divergence (Zhang et al. 2019: 6)")
    eps_warmup: float = Field(
        default=0.0,
        ge=0,
        description="epochs over which eps grows linearly from 0 (paper: none; Debenedetti et al., 2209.07399: 10)",
    )

    @model_validator(mode="after")
    def _fits(self) -> AttackConfig:
        check_radius(self.norm, self.eps, where="attack.eps")
        if self.kind == "fgsm" and (self.norm != "Linf" or self.steps != 1):
            raise UserError(
                "fgsm takes one step in the Linf ball",
                where="attack.kind",
                value=f"{self.norm}, {self.steps} steps",
                remedy="set norm: Linf and steps: 1, or kind: apgd",
            )
        if self.kind == "fgsm" and self.loss == "trades":
            raise UserError(
                "fgsm raises the cross-entropy, and TRADES needs the divergence raised",
                where="attack.loss",
                value=self.loss,
                remedy="set loss: ce, or kind: apgd with steps: 1",
            )
        return self


class ProbeConfig(Part):
    """The held-out check during training; it uses training images that are never trained on nor reported."""

    fraction: float = Field(default=0.1, ge=0, lt=0.9, description="share of the training images held out for it")
    images: int = Field(default=1000, ge=1, description="but at most so many")
    every: int = Field(default=5, ge=1, description="epochs between probes; the last epoch always has one")
    steps: int = Field(default=10, ge=1, description="APGD-CE steps of the robust accuracy")
    norm: Literal["Linf", "L2", "L1"] | None = Field(
        default=None, description="norm; none: the training attack's, or Linf"
    )
    eps: Radius | None = Field(
        default=None, gt=0, description="radius; none: the training attack's; without one no attack"
    )
    other_norms: dict[Literal["Linf", "L2", "L1"], Radius] = Field(
        default={}, description="further norms to look at, with their radii, e.g. {L2: 2, L1: 75}; none by default"
    )

    @field_validator("other_norms")
    @classmethod
    def _radii_are_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for norm, eps in value.items():
            where = f"probe.other_norms.{norm}"
            if eps <= 0:
                remedy = "give the radius of the evaluation, e.g. {Linf: 4/255, L2: 2, L1: 75}"
                raise UserError("a radius is above 0", where=where, value=eps, remedy=remedy)
            check_radius(norm, eps, where=where)
        return value


# MERGED

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
