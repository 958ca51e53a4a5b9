"""The parts of a training stage's configuration: network, attack, and the held-out check.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.errors import UserError
from components.radius import Radius, check_radius


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
