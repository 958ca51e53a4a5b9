"""What a recipe can set in a training stage: `TrainConfig`, and the five kinds of stage, which differ in defaults.

"paper" in a description means Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023;
"code" its released code. Numbers without either are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from components.errors import UserError, nearest
from components.fingerprint import NO_FINGERPRINT, WHEN_SET
from components.train.config_parts import (
    AttackConfig,
    ModelConfig,
    MonitorConfig,
    Part,
    ValidationConfig,
    check_first_weights,
    check_schedule,
    check_validation,
)
from components.train.workers import check_dropout, check_workers, split_range

__all__ = [
    "CONFIGS",
    "AdversarialConfig",
    "AttackConfig",
    "ConvStemConfig",
    "ModelConfig",
    "MonitorConfig",
    "PretrainConfig",
    "RadiusConfig",
    "TrainConfig",
    "TransferConfig",
    "ValidationConfig",
]

_INIT_PREFIXES = ("timm:", "file:")
_LARGE_SIDE = 96
"""Smaller images show whole objects: cutting their border would cut the objects."""


class TrainConfig(Part):
    """One training stage; the subclasses below are the five kinds."""

    kind: ClassVar[str] = ""
    needs_init: ClassVar[bool] = True
    keeps_head: ClassVar[bool] = True
    """Whether the classifier of an earlier stage or file is kept, which requires the same classes."""

    data: str = Field(description="name of the encode stage whose training images are used")
    init: str | None = Field(
        default=None,
        description="first weights: a stage's name, `random`, `timm:<tag>`, or `file:<path>` (.safetensors, .pt)",
    )
    pretrained_data: Literal["any", "imagenet-1k"] = Field(
        default="any",
        description="data that the weights of a timm tag may have seen",
        json_schema_extra=NO_FINGERPRINT,
    )
    model: ModelConfig | None = Field(default=None, description="network; none: that of the init stage")
    resolution: int = Field(default=224, ge=8, le=2048, description="side of the training images in px (paper: 224)")
    epochs: int = Field(default=50, ge=1, description="passes over the training images (paper: 50 to 300)")
    batch_size: int = Field(
        default=640, ge=2, description="images per step over all workers (code: 8 x 80 for ConvNeXt-B)"
    )
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate, not scaled with the batch (paper)")
    min_lr: float = Field(default=5e-6, ge=0, description="learning rate at the end (code)")
    warmup_epochs: float = Field(
        default=10, ge=0, description="epoch of the peak (paper: 10; code: 20 above 100 epochs)"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW momenta (paper)")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW weight decay (paper)")
    no_weight_decay: Literal["standard", "released_code"] = Field(
        default="standard",
        description="parameters without weight decay: 1-D weights, positions and class token; or those of code",
    )
    match_released_code: bool = Field(
        default=False,
        description="repeat the slips of code: its parameters without weight decay, one order of the images in every "
        "epoch, black borders and erasing with pixels outside [0, 1] in heavy augmentation, the attack's ball around "
        "such pixels as they are, no flips in basic augmentation, no label smoothing without mixup or cutmix",
    )
    clip_grad: float | None = Field(default=None, gt=0, description="largest gradient norm (paper: none)")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth (paper: none)")
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="decay of the averaged (EMA) weights per step (code; paper: 0.999)"
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        description="share of the target spread over all classes (paper: 0.1; code: not without mixing)",
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup, 0: off (paper, heavy: 0.8)")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix, 0: off (paper, heavy: 1.0)")
    mixup_prob: float = Field(default=1.0, ge=0, le=1, description="share of the batches that are mixed (paper: 1.0)")
    augment: Literal["none", "basic", "heavy"] = Field(
        default="basic",
        description="none; crop and flip; or RandAugment m9-mstd0.5-inc1 and random erasing too (paper: heavy)",
    )
    scale: tuple[float, float] = Field(
        default=(0.08, 1.0), description="smallest and largest share of the image's area in a crop (paper)"
    )
    ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="width over height of a crop (paper)")
    crop_pct: float | None = Field(
        default=None, gt=0, le=1, description="centre crop at evaluation; none: 0.875 (paper) from 96 px on, else 1"
    )
    hflip: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of images mirrored (paper, heavy: 0.5; code: none in basic augmentation)",
    )
    attack: AttackConfig | None = Field(default=None, description="adversarial training; none: clean")
    validation: ValidationConfig = Field(
        default=ValidationConfig(), description="accuracy on held-out training images during training"
    )
    monitor: MonitorConfig = Field(default=MonitorConfig(), description="what happens when training goes wrong")
    keep_weights: Literal["last", "best"] = Field(
        default="last", description="EMA weights that become the stage's model: the last, or of the best validation"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="autocast; auto: bf16 on GPUs that have it, else fp32 (code: fp16)"
    )
    compile: bool = Field(default=False, description="torch.compile the network")
    seed_offset: int = Field(default=0, ge=0, description="added to the recipe's seed, for repeated runs")
    num_workers: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Ray Train workers; 0: this process; a range such as 1-4: the most that the cluster holds",
        json_schema_extra=NO_FINGERPRINT,
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="smallest number of workers, if num_workers is the largest; none: exactly num_workers",
        json_schema_extra=NO_FINGERPRINT,
    )
    micro_batch_size: int = Field(
        default=0,
        ge=0,
        description="images per forward of a worker, gradients are summed; 0: its whole share of the batch",
        json_schema_extra=NO_FINGERPRINT,
    )
    loader: Literal["auto", "ffcv", "native"] = Field(
        default="auto", description="engine that reads the images", json_schema_extra=NO_FINGERPRINT
    )
    num_threads: int = Field(
        default=0, ge=0, description="decoding threads per worker; 0: all cores", json_schema_extra=NO_FINGERPRINT
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where the network runs; auto: a GPU if there is one",
        json_schema_extra=NO_FINGERPRINT,
    )
    checkpoint_interval_s: float = Field(
        default=600, ge=0, description="seconds between checkpoints inside an epoch", json_schema_extra=NO_FINGERPRINT
    )
    checkpoint_min_interval_s: float = Field(
        default=15,
        ge=0,
        description="least seconds between checkpoints at the ends of epochs",
        json_schema_extra=NO_FINGERPRINT,
    )
    log_interval_s: float = Field(
        default=300,
        gt=0,
        description="seconds between metrics sent to MLflow inside an epoch",
        json_schema_extra=NO_FINGERPRINT,
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port for Prometheus on this machine, 0: any free one; none: ROBUSTRAIN_METRICS_PORT or no port",
        json_schema_extra=NO_FINGERPRINT,
    )
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="peak of one device, for the utilisation; none: measured on GPUs, unknown on CPUs",
        json_schema_extra=NO_FINGERPRINT,
    )

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_leaves_a_target(cls, value: float) -> float:
        if value >= 0.5:
            raise UserError(
                "label smoothing of 0.5 or more hides the label",
                where="label_smoothing",
                value=value,
                remedy="use less than 0.5; the paper's value is 0.1",
            )
        return value

    @field_validator("betas")
    @classmethod
    def _betas_are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise UserError("momenta are in [0, 1)", where="betas", value=value, remedy="the paper's are 0.9 and 0.95")
        return value

    @field_validator("scale", "ratio")
    @classmethod
    def _range_is_ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise UserError(
                "a range is two positive numbers, the smaller first", value=value, remedy="swap or correct them"
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

    @model_validator(mode="before")
    @classmethod
    def _split_workers(cls, document: Any) -> Any:
        return split_range(document) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        check_workers(*self.worker_range, batch_size=self.batch_size, pairs=self.mixes)
        check_dropout(
            self.model.kwargs if self.model else {},
            num_workers=self.num_workers,
            micro_batch_size=self.micro_batch_size,
        )
        check_schedule(
            self.epochs, self.warmup_epochs, self.lr, self.min_lr, self.attack.eps_warmup_epochs if self.attack else 0.0
        )
        check_validation(self.validation, self.attack, keep_weights=self.keep_weights)
        check_first_weights(
            self.kind,
            self.init,
            self.model,
            needs_init=self.needs_init,
            from_stage=self.init_stage is not None,
            pretrained_data=self.pretrained_data,
        )
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of Ray workers; equal if the recipe gives one number."""
        return (self.num_workers if self.min_workers is None else self.min_workers), self.num_workers

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by mixup or cutmix."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def smoothing(self) -> float:
        """The label smoothing in effect: the released code smooths in its mixing only."""
        return 0.0 if self.match_released_code and not self.mixes else self.label_smoothing

    @property
    def hflip_share(self) -> float:
        """The share of training images that is mirrored: the released code mirrors with heavy augmentation only."""
        never = self.augment == "none" or (self.match_released_code and self.augment == "basic")
        return 0.0 if never else self.hflip

    @property
    def center_crop(self) -> float:
        """The side of the centre crop at evaluation, as a share of the resized image's side."""
        return self.crop_pct or (0.875 if self.resolution >= _LARGE_SIDE else 1.0)

    @property
    def init_stage(self) -> str | None:
        """The stage that the first weights come from; None if they come from elsewhere."""
        if self.init is None or self.init == "random" or self.init.startswith(_INIT_PREFIXES):
            return None
        return self.init


class PretrainConfig(TrainConfig):
    """Clean weights, trained in this stage or taken from a timm tag or a file."""

    kind: ClassVar[str] = "pretrain"
    needs_init: ClassVar[bool] = False
    keeps_head: ClassVar[bool] = False
    init: str | None = Field(default="random", description="`random`, `timm:<tag>`, `file:<path>` or a stage's name")
    model: ModelConfig | None = Field(default=ModelConfig(), description="network")
    epochs: int = Field(default=100, ge=0, description="0: take the weights as they are")
    fresh_head: bool = Field(
        default=False,
        description="with epochs 0: accept weights whose classifier is missing or for other classes; a later stage "
        "has to train the fresh one",
        json_schema_extra=WHEN_SET,
    )


class ConvStemConfig(TrainConfig):
    """Clean fine-tuning of the parent's network with its PatchStem replaced by a ConvStem (paper: about 100 epochs)."""

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
    """Fine-tuning of a robust model to a larger radius or another norm."""

    kind: ClassVar[str] = "radius"
    attack: AttackConfig | None = Field(
        default=AttackConfig(eps=8 / 255), description="the new threat (paper: Linf 8/255)"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the training images (code: 20 for L2)")
    warmup_epochs: float = Field(default=5, ge=0, description="epoch of the peak (code: flag 5)")


class TransferConfig(TrainConfig):
    """Clean or adversarial fine-tuning on another data set."""

    kind: ClassVar[str] = "transfer"
    keeps_head: ClassVar[bool] = False
    epochs: int = Field(default=20, ge=1, description="passes over the training images (paper: not published)")
    warmup_epochs: float = Field(default=2, ge=0, description="epoch of the peak (paper: not published)")


CONFIGS: dict[str, type[TrainConfig]] = {
    config.kind: config for config in (PretrainConfig, ConvStemConfig, AdversarialConfig, RadiusConfig, TransferConfig)
}
"""Kind of stage -> its configuration."""
