"""Configuration of the `evaluate` and `sweep` stages. Light to import: the pipeline reads it without torch.

Radii are in the units of images in [0, 1]. "paper" is Singh, Croce, Hein, NeurIPS 2023 (Linf 4/255, L2 2, L1 75).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.config_model import ConfigModel
from components.errors import UserError, nearest
from components.fingerprint import NO_FINGERPRINT, WHEN_SET
from components.threats import ATTACKS, NORMS, AttackKey, Norm, Radius, check_radius, evaluation_seconds, threat_text

IMAGE_FILE = "file:"
"""Prefix of `images` for a list in a file."""


class Threat(ConfigModel):
    """One threat model and the attack that measures it."""

    norm: Norm = Field(default="Linf", description="norm of the perturbation")
    eps: Radius = Field(gt=0, description="radius for images in [0, 1], e.g. 4/255 (paper: Linf 4/255, L2 2, L1 75)")
    attack: AttackKey = Field(
        default="autoattack",
        description=f"one of {', '.join(ATTACKS)}; autoattack is the standard version with all four attacks",
    )
    num_images: int | None = Field(
        default=None, ge=1, description="images for this threat, the first of the evaluation's; none: all of them"
    )

    @model_validator(mode="after")
    def _in_range(self) -> Threat:
        check_radius(self.norm, self.eps, where="threats.eps")
        return self

    @property
    def title(self) -> str:
        """Attack, norm and radius: `AutoAttack Linf 4/255`."""
        return f"{ATTACKS[self.attack].title} {threat_text(self.norm, self.eps)}"


class EvaluateConfig(ConfigModel):
    """Clean accuracy and robust accuracy of one model in one or more threat models, on the same images."""

    model: str = Field(description="name of the training stage whose model is attacked")
    data: str | None = Field(
        default=None, description="name of the encode stage with the images; none: the model's own"
    )
    split: Literal["train", "val"] = Field(default="val", description="split the images are taken from")
    num_images: int = Field(
        default=5000, ge=1, description="images, drawn without replacement or the first of the list (paper: 5000)"
    )
    images: str = Field(
        default="drawn",
        description="drawn by the seed; robustbench: the list in an installed robustbench (paper); file:<path>: a list "
        "with one class/file per line",
        json_schema_extra=NO_FINGERPRINT,  # the list's digest stands for it
    )
    images_sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="expected sha256 of the list in a file; none: not checked",
        json_schema_extra=NO_FINGERPRINT,
    )
    threats: tuple[Threat, ...] = Field(
        default=tuple(Threat(norm=norm, eps=info.paper_radius) for norm, info in NORMS.items()),
        min_length=1,
        description="threats to measure, in this order (paper: three norms)",
    )
    resolution: int | None = Field(default=None, ge=8, le=2048, description="image side in px; none: the model's own")
    batch_size: int = Field(
        default=64, ge=1, le=4096, description="images attacked together; the attacks' random draws depend on it"
    )
    seed: int = Field(
        default=0, ge=0, description="of the choice of images and of the attacks; apart from the recipe's seed"
    )
    gallery: int = Field(default=6, ge=0, le=64, description="number of adversarial images kept to look at")
    spectra: bool = Field(
        default=False,
        description="also measure the power spectra of the stem's filters and of the loss's gradient by the image",
        json_schema_extra=WHEN_SET,
    )
    num_processes: int = Field(
        default=0,
        ge=0,
        le=256,
        description="processes; 0: one per core of the stage, or one on a GPU",
        json_schema_extra=NO_FINGERPRINT,
    )
    launcher: Literal["auto", "local", "ray"] = Field(
        default="auto",
        description="processes on this machine, or Ray tasks; auto: Ray if RAY_ADDRESS is set",
        json_schema_extra=NO_FINGERPRINT,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: the GPU if there is one", json_schema_extra=NO_FINGERPRINT
    )

    @model_validator(mode="after")
    def _known_images(self) -> EvaluateConfig:
        is_file = self.images.startswith(IMAGE_FILE)
        if self.images not in ("drawn", "robustbench") and not is_file:
            raise UserError(
                f"there is no such set of images{nearest(self.images, ['drawn', 'robustbench'])}",
                where="images",
                value=self.images,
                remedy="use drawn, robustbench or file:<path>",
            )
        if self.images != "drawn" and self.split != "val":
            raise UserError(
                "lists name validation images",
                where="split",
                value=self.split,
                remedy="use split: val, or images: drawn",
            )
        if self.images_sha256 is not None and not is_file:
            raise UserError(
                "only a list in a file has a sha256 to check",
                where="images_sha256",
                value=self.images_sha256,
                remedy="remove it, or set images: file:<path>",
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        seen: set[tuple[str, float, str]] = set()
        for threat in self.threats:
            key = (threat.norm, threat.eps, threat.attack)
            if key in seen:
                raise UserError(
                    "this threat is given twice", where="threats", value=threat.title, remedy="remove one of them"
                )
            seen.add(key)
            if threat.num_images is not None and threat.num_images > self.num_images:
                raise UserError(
                    f"{threat.title} asks for more images than the evaluation has ({self.num_images})",
                    where="threats.num_images",
                    value=threat.num_images,
                    remedy="raise num_images of the evaluation, or lower that of the threat",
                )
        return self

    def resolutions_or(self, own: int) -> tuple[int, ...]:
        """The image sides to evaluate at, in px; `own` is the model's."""
        return (self.resolution or own,)

    @property
    def estimated_seconds(self) -> float:
        """Estimated time in seconds of the quickstart on one core, for the order of stages only."""
        work = [(threat.attack, threat.num_images or self.num_images) for threat in self.threats]
        return evaluation_seconds(work, num_resolutions=len(self.resolutions_or(0)))


class SweepConfig(EvaluateConfig):
    """The same threats at several test resolutions. The radii stay as they are, whatever the number of pixels."""

    resolutions: tuple[Annotated[int, Field(ge=8, le=2048)], ...] = Field(
        min_length=1, description="image sides in px, e.g. 192, 224, 256"
    )

    @model_validator(mode="after")
    def _sides(self) -> SweepConfig:
        if self.resolution is not None:
            raise UserError(
                "a sweep has resolutions", where="resolution", value=self.resolution, remedy="add it to resolutions"
            )
        if len(set(self.resolutions)) != len(self.resolutions):
            raise UserError(
                "a resolution is given twice", where="resolutions", value=self.resolutions, remedy="remove one of them"
            )
        return self

    def resolutions_or(self, own: int) -> tuple[int, ...]:
        """The image sides to evaluate at, in px."""
        return self.resolutions
