"""The parts of a training stage's configuration: network, attack, validation, and monitoring.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.attack.training_attacks import TRAINING_ATTACKS
from components.errors import UserError, nearest
from components.threats import Norm, Radius, check_radius


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

    norm: Norm = Field(default="Linf", description="norm of the ball (paper: Linf; L2, L1 for tuning)")
    eps: Radius = Field(
        default=4 / 255, gt=0, description="radius in [0, 1] pixel units, e.g. 4/255 (paper), L2 2, L1 75"
    )
    steps: int = Field(default=2, ge=1, le=1000, description="gradient steps (paper: 2; 1 and 3 in its ablation)")
    return_iterate: Literal["best", "last"] = Field(
        default="best", description="iterate returned: of largest loss (code), or the last one, one forward cheaper"
    )
    name: str = Field(default="apgd", description="apgd (paper), or fgsm with a random start")
    random_start: bool = Field(default=True, description="fgsm only: start at a random point (Wong et al. 2020)")
    fgsm_alpha: float = Field(
        default=1.25, gt=0, le=4, description="fgsm only: step size in units of eps (Wong et al. 2020)"
    )
    loss: Literal["ce", "trades"] = Field(
        default="ce", description="ce on adversarial images (paper), or TRADES (2019)"
    )
    trades_beta: float = Field(
        default=6.0, ge=0, description="trades only: weight of the divergence (Zhang et al. 2019: 6)"
    )
    eps_warmup_epochs: float = Field(
        default=0.0,
        ge=0,
        description="epochs over which eps grows linearly from 0 (paper: none; Debenedetti et al., 2209.07399: 10)",
    )

    @field_validator("name")
    @classmethod
    def _attack_is_known(cls, value: str) -> str:
        if value not in TRAINING_ATTACKS:
            raise UserError(
                f"there is no such training attack{nearest(value, TRAINING_ATTACKS)}",
                where="attack.name",
                value=value,
                remedy=f"use one of {', '.join(TRAINING_ATTACKS)}",
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> AttackConfig:
        check_radius(self.norm, self.eps, where="attack.eps")
        attack = TRAINING_ATTACKS[self.name]
        if self.norm not in attack.norms or (attack.max_steps and self.steps > attack.max_steps):
            steps = f", steps: {attack.max_steps}" if attack.max_steps else ""
            raise UserError(
                f"{self.name} does not attack in this norm with this number of steps",
                where="attack.name",
                value=f"{self.norm}, {self.steps} steps",
                remedy=f"set norm: {' or '.join(attack.norms)}{steps}, or name: apgd",
            )
        if self.loss not in attack.losses:
            raise UserError(
                f"{self.name} cannot raise this loss",
                where="attack.loss",
                value=self.loss,
                remedy=f"set loss: {' or '.join(attack.losses)}, or name: apgd (with steps: 1 for a single step)",
            )
        return self


class ValidationConfig(Part):
    """Validation during training, on held-out training images that are never trained on and never reported."""

    fraction: float = Field(default=0.1, ge=0, lt=0.9, description="share of the training images that is held out")
    max_images: int = Field(default=1000, ge=1, description="largest number of held-out images")
    every_epochs: int = Field(default=5, ge=1, description="epochs between validations; the last epoch always has one")
    steps: int = Field(default=10, ge=1, description="APGD-CE steps of the robust accuracy")
    norm: Norm | None = Field(default=None, description="norm; none: the training attack's, or Linf")
    eps: Radius | None = Field(
        default=None, gt=0, description="radius; none: the training attack's; without one no attack"
    )
    extra_norms: dict[Norm, Radius] = Field(
        default={}, description="further norms to attack in, with their radii, e.g. {L2: 2, L1: 75}; none by default"
    )

    @field_validator("extra_norms")
    @classmethod
    def _radii_are_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for norm, eps in value.items():
            where = f"validation.extra_norms.{norm}"
            if eps <= 0:
                remedy = "give the radius of the evaluation, e.g. {Linf: 4/255, L2: 2, L1: 75}"
                raise UserError("a radius is above 0", where=where, value=eps, remedy=remedy)
            check_radius(norm, eps, where=where)
        return value


Action = Literal["warn", "stop", "rollback"]
"""Warn and go on; end the stage; or restore the state of the last good validation and lower the learning rate."""


class MonitorConfig(Part):
    """What happens when training goes wrong. Accuracies are those on held-out training images."""

    on_collapse: Action = Field(default="warn", description="clean and robust accuracy fell together")
    on_catastrophic_overfitting: Action = Field(
        default="warn", description="the training attack succeeds less, a stronger one more"
    )
    on_overfitting: Action = Field(default="warn", description="clean accuracy rises while robust accuracy falls")
    on_poor_generalisation: Action = Field(
        default="warn", description="robust in the training norm, hardly robust in validation.extra_norms"
    )
    on_chance: Action = Field(default="warn", description="accuracy was never better than guessing")
    on_non_finite: Literal["stop", "rollback"] = Field(
        default="stop", description="loss or gradient is NaN or infinite"
    )
    collapse_drop: float = Field(
        default=0.5, gt=0, lt=1, description="loss of accuracy, as a share of the best validation's, that counts"
    )
    catastrophic_drop: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of the images that resist the training attack which the stronger attack has to break",
    )
    overfitting_drop: float = Field(default=0.1, gt=0, lt=1, description="loss of robust accuracy that counts")
    extra_norms_share: float = Field(
        default=0.1, gt=0, lt=1, description="robust accuracy in another norm, as a share of that in the training norm"
    )
    chance_epochs: int = Field(default=5, ge=1, description="epochs after which guessing counts as a failure")
    num_images: int = Field(
        default=256, ge=1, description="held-out images on which the raw weights are validated, rounded up to batches"
    )
    rollback_lr_factor: float = Field(default=0.5, gt=0, lt=1, description="factor on the learning rate per rollback")
    max_rollbacks: int = Field(default=2, ge=1, le=20, description="rollbacks after which the training stops")

    @property
    def can_roll_back(self) -> bool:
        """Whether any signature leads to a rollback, so that good states have to be kept."""
        return "rollback" in (getattr(self, name) for name in type(self).model_fields if name.startswith("on_"))
