"""The parts of a training stage: configuration of network, attack, validation, monitoring; checks across its fields.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours. The checks run when a recipe is read, before any work.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.attack.training_attacks import TRAINING_ATTACKS
from components.config_model import ConfigModel
from components.errors import UserError, nearest
from components.imagenet1k_tags import is_imagenet1k, other_data_in
from components.threats import Norm, Radius, check_radius


class Part(ConfigModel):
    """A part of the configuration of a training stage."""


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
        "first weights' tag; none: that of the file if the first weights are from one, else raw pixels (code)",
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


def check_schedule(epochs: int, warmup_epochs: float, lr: float, min_lr: float, eps_warmup_epochs: float) -> None:
    """Checks that the learning rate rises before it falls, and that the attack reaches its radius.

    Raises:
        UserError: the rate peaks after the end, or ends above its peak; the radius still grows at the end.
    """
    if warmup_epochs >= epochs and epochs > 1:
        raise UserError(
            "the learning rate peaks after the last epoch",
            where="warmup_epochs",
            value=warmup_epochs,
            remedy=f"use less than epochs ({epochs})",
        )
    if min_lr > lr:
        raise UserError("is above the peak", where="min_lr", value=min_lr, remedy=f"use at most lr ({lr})")
    if 0 < epochs <= eps_warmup_epochs:
        raise UserError(
            "the radius still grows when the training ends, so the network is never trained with the recipe's radius",
            where="attack.eps_warmup_epochs",
            value=eps_warmup_epochs,
            remedy=f"use less than epochs ({epochs})",
        )


def check_validation(
    validation: ValidationConfig, attack: AttackConfig | None, *, keep_weights: Literal["last", "best"]
) -> None:
    """Checks the radius of the validation's attack, and that the best weights can be chosen.

    Raises:
        UserError: a radius in other units, or of another norm's attack; `keep_weights: best` without held-out images.
    """
    norm = validation.norm or (attack.norm if attack else "Linf")
    if validation.eps is not None:
        check_radius(norm, validation.eps, where="validation.eps")
    elif attack is not None and norm != attack.norm:
        raise UserError(
            f"the training attack's radius is one of {attack.norm}, not of {norm}",
            where="validation.eps",
            value=validation.eps,
            remedy=f"give the {norm} radius, or leave out validation.norm",
        )
    if keep_weights == "best" and validation.fraction == 0:
        raise UserError(
            "no images are held out, so the best weights cannot be chosen",
            where="keep_weights",
            value=keep_weights,
            remedy="set validation.fraction above 0 (default 0.1), or keep_weights: last",
        )


def check_first_weights(
    kind: str,
    init: str | None,
    model: ModelConfig | None,
    *,
    needs_init: bool,
    from_stage: bool,
    pretrained_data: Literal["any", "imagenet-1k"],
) -> None:
    """Checks that the sources of the first weights and of the network are given.

    Args:
        kind: kind of the stage.
        init: source of the first weights.
        model: network.
        needs_init: the kind of stage cannot start from random weights by default.
        from_stage: `init` names a stage.
        pretrained_data: data that the weights of a timm tag may have seen.

    Raises:
        UserError: `init` or `model` is missing, the normaliser of a tag is asked for without a tag, or the weights
            have seen other data than the recipe allows.
    """
    if needs_init and init is None:
        raise UserError(
            f"a {kind} stage starts from the weights of another stage",
            where="init",
            remedy="name the stage, or write random, timm:<tag> or file:<path>",
        )
    if model is None and not from_stage:
        raise UserError(
            "no network is named, and init names no stage to take it from",
            where="model",
            remedy="add model: {name: convnext_tiny, stem: patch}",
        )
    if model is not None and model.normalize == "tag" and not (init or "").startswith("timm:"):
        raise UserError(
            "only weights of a timm tag name their normaliser",
            where="model.normalize",
            value="tag",
            remedy="give mean and deviation, leave it out for raw pixels or a file's own, or set init: timm:<tag>",
        )
    if pretrained_data == "imagenet-1k":
        _check_tag(init or "")


def _check_tag(init: str) -> None:
    if not init.startswith("timm:"):
        return
    tag = init.removeprefix("timm:")
    if is_imagenet1k(tag):
        return
    network, _, label = tag.rpartition(".")
    words, foreign = label.lower().split("_"), other_data_in(tag)
    if not network and not foreign:
        network, words = label, []  # a network without a tag: timm would choose one
    kept = [word for word in words if word.isalpha() and word not in foreign]
    near = "_".join([*(kept or ["fb"]), "in1k"])
    raise UserError(
        "these weights were not trained on ImageNet-1k alone, but pretrained_data is imagenet-1k",
        where="init",
        value=init,
        remedy=f"take timm:{f'{network}.' if network else ''}{near}, or set pretrained_data: any",
    )
