"""What a training stage can be told: five kinds of one configuration, apart in defaults and in what must be given.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from components.errors import UserError
from components.fingerprint import WHEN_SET
from components.train.config_base import TrainConfig
from components.train.config_parts import AttackConfig, ModelConfig, ProbeConfig
from components.train.health_config import HealthConfig

__all__ = [
    "CONFIGS",
    "AdversarialConfig",
    "AttackConfig",
    "ConvStemConfig",
    "HealthConfig",
    "ModelConfig",
    "PretrainConfig",
    "ProbeConfig",
    "RadiusConfig",
    "TrainConfig",
    "TransferConfig",
]


class PretrainConfig(TrainConfig):
    """Clean weights, trained here or taken from a timm tag or a file."""

    kind: ClassVar[str] = "pretrain"
    needs_init: ClassVar[bool] = False
    keeps_head: ClassVar[bool] = False
    init: str | None = Field(default="random", description="`random`, `timm:<tag>`, `file:<path>` or a stage's name")
    model: ModelConfig | None = Field(default=ModelConfig(), description="network")
    epochs: int = Field(default=100, ge=0, description="0: take the weights as they are")
    fresh_head: bool = Field(
        default=False,
        description="with epochs 0: take weights whose classifier is missing or for other classes; a later stage "
        "has to train the fresh one",
        json_schema_extra=WHEN_SET,
    )


class ConvStemConfig(TrainConfig):
    """The parent's network with its PatchStem replaced by a ConvStem, tuned clean (paper: about 100 epochs)."""

    kind: ClassVar[str] = "convstem"
    epochs: int = Field(default=100, ge=1, description="passes over the training images (paper: about 100)")


class AdversarialConfig(TrainConfig):
    """Adversarial training from a clean model."""

    kind: ClassVar[str] = "adversarial"
    attack: AttackConfig | None = Field(
        default=AttackConfig(), description="adversarial training (paper: Linf 4/255, 2 steps)"
    )

    @field_validator("attack")
    @classmethod
    def _attack_is_given(cls, value: AttackConfig | None) -> AttackConfig | None:
        if value is None:
            raise UserError(
                f"a {cls.kind} stage needs an attack",
                where="attack",
                remedy="leave the field out for the paper's attack",
            )
        return value


class RadiusConfig(AdversarialConfig):
    """Tuning of a robust model to a larger radius or another norm."""

    kind: ClassVar[str] = "radius"
    attack: AttackConfig | None = Field(
        default=AttackConfig(eps=8 / 255), description="the new threat (paper: Linf 8/255)"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the training images (code: 20 for L2)")
    warmup_epochs: float = Field(default=5, ge=0, description="epoch of the peak (code: flag 5)")


class TransferConfig(TrainConfig):
    """Clean or adversarial tuning on another data set."""

    kind: ClassVar[str] = "transfer"
    keeps_head: ClassVar[bool] = False
    epochs: int = Field(default=20, ge=1, description="passes over the training images (paper: not published)")
    warmup_epochs: float = Field(default=2, ge=0, description="epoch of the peak (paper: not published)")


CONFIGS: dict[str, type[TrainConfig]] = {
    config.kind: config for config in (PretrainConfig, ConvStemConfig, AdversarialConfig, RadiusConfig, TransferConfig)
}
"""Kind of stage -> its configuration."""
