"""What a training stage can be told: five kinds of one configuration, apart in defaults and in what must be given.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.errors import UserError, nearest
from components.fingerprint import NO_FINGERPRINT
from components.radius import Radius

NORMS = ("Linf", "L2", "L1")
_INIT_PREFIXES = ("timm:", "file:")
_LARGE_SIDE = 96
"""Smaller images are whole objects: cutting their border would cut them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Part):
    """Which network a stage builds."""

    name: str = Field(
        default="convnext_micro", description="timm name of the network without its stem, e.g. convnext_tiny"
    )
    stem: Literal["patch", "conv"] = Field(
        default="patch", description="PatchStem as published, or the paper's ConvStem"
    )
    normalize: tuple[tuple[float, float, float], tuple[float, float, float]] | None = Field(
        default=None,
        description="mean and standard deviation of a first layer, in [0, 1] units; none: raw pixels (code)",
    )
    kwargs: dict[str, Any] = Field(default={}, description="further arguments of timm.create_model")


class AttackConfig(_Part):
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
        default=0.0, ge=0, description="epochs over which eps grows linearly from 0 (paper: none)"
    )

    @model_validator(mode="after")
    def _fits(self) -> AttackConfig:
        if self.norm == "Linf" and self.eps > 1:
            raise UserError(
                "a Linf radius is given in [0, 1] pixel units and cannot exceed 1",
                where="attack.eps",
                value=self.eps,
                remedy=f"write {self.eps:g}/255",
            )
        if self.norm == "L2" and self.eps > 100:
            raise UserError(
                "this L2 radius looks like 0-255 units",
                where="attack.eps",
                value=self.eps,
                remedy="divide it by 255; the paper's L2 radius is 2",
            )
        if self.kind == "fgsm" and (self.norm != "Linf" or self.steps != 1):
            raise UserError(
                "fgsm takes one step in the Linf ball",
                where="attack.kind",
                value=f"{self.norm}, {self.steps} steps",
                remedy="set norm: Linf and steps: 1, or kind: apgd",
            )
        return self


class ProbeConfig(_Part):
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


class HealthConfig(_Part):
    """What happens when training goes wrong."""

    on_collapse: Literal["warn", "stop"] = Field(default="warn", description="clean and robust accuracy fell together")
    collapse_drop: float = Field(default=0.5, gt=0, lt=1, description="share of the best probe that has to be lost")


class TrainConfig(_Part):
    """One training stage. The subclasses are the five kinds."""

    kind: ClassVar[str] = ""
    needs_init: ClassVar[bool] = True

    data: str = Field(description="name of the encode stage whose training images are used")
    init: str | None = Field(
        default=None,
        description="first weights: a stage's name, `random`, `timm:<tag>`, or `file:<path>` (.safetensors, .pt)",
    )
    model: ModelConfig | None = Field(default=None, description="network; none: that of the init stage")
    resolution: int = Field(default=224, ge=8, le=2048, description="side of the training images in px (paper: 224)")
    epochs: int = Field(default=50, ge=1, description="passes over the training images (paper: 50 to 300)")
    batch_size: int = Field(
        default=640, ge=2, description="images a step over all workers (code: 8 x 80 for ConvNeXt-B)"
    )
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate, not scaled with the batch (paper)")
    lr_min: float = Field(default=5e-6, ge=0, description="learning rate at the end (code)")
    warmup_epochs: float = Field(
        default=10, ge=0, description="epoch of the peak (paper: 10; code: 20 above 100 epochs)"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW momenta (paper)")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW weight decay (paper)")
    groups: Literal["sane", "faithful"] = Field(
        default="sane",
        description="what is not decayed: 1-D weights, positions and class token; or exactly what code leaves out",
    )
    clip_grad: float | None = Field(default=None, gt=0, description="largest gradient norm (paper: none)")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth (paper: none)")
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="decay of the averaged weights a step (code; paper: 0.999)"
    )
    label_smoothing: float = Field(
        default=0.1, ge=0, description="share of the target spread over all classes (paper: 0.1)"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup, 0: off (paper, heavy: 0.8)")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix, 0: off (paper, heavy: 1.0)")
    mixup_prob: float = Field(default=1.0, ge=0, le=1, description="share of the batches that are mixed (paper: 1.0)")
    augment: Literal["none", "basic", "heavy"] = Field(
        default="basic",
        description="none; crop and flip; or RandAugment m9-mstd0.5-inc1 and random erasing too (paper: heavy)",
    )
    crop_scale: tuple[float, float] = Field(
        default=(0.08, 1.0), description="share of the image's area a crop takes (paper)"
    )
    crop_aspect: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="width over height of a crop (paper)")
    eval_crop: float | None = Field(
        default=None, gt=0, le=1, description="centre crop at evaluation; none: 0.875 (paper) from 96 px on, else 1"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="share of images mirrored (paper, heavy: 0.5)")
    attack: AttackConfig | None = Field(default=None, description="adversarial training; none: clean")
    probe: ProbeConfig = Field(default=ProbeConfig(), description="the held-out check")
    health: HealthConfig = Field(default=HealthConfig(), description="what happens when training goes wrong")
    select: Literal["last", "best"] = Field(
        default="last", description="weights kept: the last, or those of the best probe"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="autocast; auto: bf16 on GPUs that have it, else fp32 (code: fp16)"
    )
    compile: bool = Field(default=False, description="torch.compile the network")
    seed_offset: int = Field(default=0, ge=0, description="added to the recipe's seed, for repeated runs")
    workers: int = Field(
        default=0, ge=0, le=4096, description="Ray Train workers; 0: this process", json_schema_extra=NO_FINGERPRINT
    )
    loader: Literal["auto", "ffcv", "native"] = Field(
        default="auto", description="engine that reads the images", json_schema_extra=NO_FINGERPRINT
    )
    threads: int = Field(
        default=0, ge=0, description="decoding threads a worker; 0: all cores", json_schema_extra=NO_FINGERPRINT
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where the network runs; auto: a GPU if there is one",
        json_schema_extra=NO_FINGERPRINT,
    )
    checkpoint_minutes: float = Field(
        default=10, ge=0, description="minutes between checkpoints inside an epoch", json_schema_extra=NO_FINGERPRINT
    )
    checkpoint_seconds: float = Field(
        default=15,
        ge=0,
        description="least seconds between checkpoints at epoch ends",
        json_schema_extra=NO_FINGERPRINT,
    )

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_leaves_a_target(cls, value: float) -> float:
        if value >= 0.5:
            raise UserError(
                "label smoothing of 0.5 or more drowns the label",
                where="label_smoothing",
                value=value,
                remedy="use less than 0.5; the paper's value is 0.1",
            )
        return value

    @field_validator("betas")
    @classmethod
    def _betas_are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise UserError("momenta lie in [0, 1)", where="betas", value=value, remedy="the paper's are 0.9 and 0.95")
        return value

    @field_validator("crop_scale", "crop_aspect")
    @classmethod
    def _range_is_ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise UserError(
                "a range is two positive numbers, the smaller first", value=value, remedy="swap or mend them"
            )
        return value

    @field_validator("init")
    @classmethod
    def _init_is_known(cls, value: str | None) -> str | None:
        if value is not None and ":" in value and not value.startswith(_INIT_PREFIXES):
            head = value.split(":")[0]
            raise UserError(
                f"first weights cannot come from {head!r}{nearest(head, ['timm', 'file'])}",
                where="init",
                value=value,
                remedy="give a stage's name, random, timm:<tag> or file:<path>",
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        self._check_batch()
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise UserError(
                "the learning rate peaks after the last epoch",
                where="warmup_epochs",
                value=self.warmup_epochs,
                remedy=f"use less than epochs ({self.epochs})",
            )
        if self.lr_min > self.lr:
            raise UserError(
                "is above the peak", where="lr_min", value=self.lr_min, remedy=f"use at most lr ({self.lr})"
            )
        if self.needs_init and self.init is None:
            raise UserError(
                f"a {self.kind} stage starts from another one",
                where="init",
                remedy="name the stage, or say random, timm:<tag> or file:<path>",
            )
        if self.model is None and not self.init_stage:
            raise UserError(
                "no network is named and there is no stage to take it from",
                where="model",
                remedy="add model: {name: convnext_tiny, stem: patch}",
            )
        return self

    def _check_batch(self) -> None:
        workers = max(self.workers, 1)
        if self.batch_size % workers:
            raise UserError(
                f"{workers} workers cannot share a batch evenly",
                where="batch_size",
                value=self.batch_size,
                remedy=f"use a multiple of {workers}",
            )
        if self.mixes and self.batch_size // workers % 2:
            raise UserError(
                "mixup and cutmix pair the images of a batch, so each worker needs an even number",
                where="batch_size",
                value=self.batch_size,
                remedy=f"use a multiple of {2 * workers}",
            )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by mixup or cutmix."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def center_crop(self) -> float:
        """The share of the resized image that evaluation looks at, side by side."""
        return self.eval_crop or (0.875 if self.resolution >= _LARGE_SIDE else 1.0)

    @property
    def init_stage(self) -> str | None:
        """The stage the first weights come from, if they come from one."""
        if self.init is None or self.init == "random" or self.init.startswith(_INIT_PREFIXES):
            return None
        return self.init


class PretrainConfig(TrainConfig):
    """Clean weights, trained here or taken from a timm tag or a file."""

    kind: ClassVar[str] = "pretrain"
    needs_init: ClassVar[bool] = False
    init: str | None = Field(default="random", description="`random`, `timm:<tag>`, `file:<path>` or a stage's name")
    model: ModelConfig | None = Field(default=ModelConfig(), description="network")
    epochs: int = Field(default=100, ge=0, description="0: take the weights as they are")


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
    epochs: int = Field(default=20, ge=1, description="passes over the training images (paper: not published)")
    warmup_epochs: float = Field(default=2, ge=0, description="epoch of the peak (paper: not published)")


CONFIGS: dict[str, type[TrainConfig]] = {
    config.kind: config for config in (PretrainConfig, ConvStemConfig, AdversarialConfig, RadiusConfig, TransferConfig)
}
"""Kind of stage -> its configuration."""
