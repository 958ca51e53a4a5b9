"""What is attacked, how, and on how many images. Light to import: the pipeline reads it without torch.

Radii are in the units of images in [0, 1]. "paper" is Singh, Croce, Hein, NeurIPS 2023 (Linf 4/255, L2 2, L1 75).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from components.errors import UserError
from components.fingerprint import NO_FINGERPRINT, WHEN_SET
from components.radius import Radius, check_radius, radius_text

Norm = Literal["Linf", "L2", "L1"]
AttackKey = Literal["autoattack", "apgd-ce+apgd-t", "apgd-ce"]

ATTACK_TITLES: dict[str, str] = {
    "autoattack": "AutoAttack",
    "apgd-ce+apgd-t": "APGD-CE+APGD-T",
    "apgd-ce": "APGD-CE",
}
"""Configuration word -> name in every table. Only the whole standard version may be called AutoAttack."""


AttackName = Annotated[AttackKey, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Threat(_Part):
    """One threat model and the attack that measures it."""

    norm: Norm = Field(default="Linf", description="norm of the perturbation")
    eps: Radius = Field(gt=0, description="radius for images in [0, 1], e.g. 4/255 (paper: Linf 4/255, L2 2, L1 75)")
    attack: AttackName = Field(
        default="autoattack",
        description="autoattack (standard, all four attacks), or a part of it: apgd-ce+apgd-t, apgd-ce",
    )
    n: int | None = Field(default=None, ge=1, description="images for this threat, the first of the n; none: all n")

    @model_validator(mode="after")
    def _in_range(self) -> Threat:
        check_radius(self.norm, self.eps, where="threats.eps")
        return self

    @property
    def title(self) -> str:
        """Attack, norm and radius: `AutoAttack Linf 4/255`."""
        return f"{ATTACK_TITLES[self.attack]} {self.norm} {radius_text(self.eps)}"


class EvaluateConfig(_Part):
    """Clean accuracy and robust accuracy of one model in one or more threat models, on the same images."""

    model: str = Field(description="name of the training stage whose model is attacked")
    data: str | None = Field(
        default=None, description="name of the encode stage with the images; none: the model's own"
    )
    split: Literal["train", "val"] = Field(default="val", description="split the images are taken from")
    n: int = Field(default=5000, ge=1, description="images, drawn without replacement (paper: 5000)")
    threats: tuple[Threat, ...] = Field(
        default=(Threat(eps=4 / 255), Threat(norm="L2", eps=2.0), Threat(norm="L1", eps=75.0)),
        min_length=1,
        description="what is attacked, in this order (paper: three norms)",
    )
    resolution: int | None = Field(default=None, ge=8, le=2048, description="image side in px; none: the model's own")
    batch_size: int = Field(
        default=64, ge=1, le=4096, description="images attacked together; the attacks' random draws depend on it"
    )
    seed: int = Field(
        default=0, ge=0, description="of the choice of images and of the attacks; apart from the recipe's seed"
    )
    gallery: int = Field(default=6, ge=0, le=64, description="adversarial images kept to look at")
    spectra: bool = Field(
        default=False,
        description="also measure the power spectra of the stem's filters and of the loss's gradient by the image",
        json_schema_extra=WHEN_SET,
    )
    processes: int = Field(
        default=0,
        ge=0,
        le=256,
        description="processes; 0: one a core, or one on a GPU",
        json_schema_extra=NO_FINGERPRINT,
    )
    launcher: Literal["auto", "local", "ray"] = Field(
        default="auto",
        description="processes here, or Ray tasks; auto: Ray where RAY_ADDRESS is set",
        json_schema_extra=NO_FINGERPRINT,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: the GPU where there is one", json_schema_extra=NO_FINGERPRINT
    )

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
            if threat.n is not None and threat.n > self.n:
                raise UserError(
                    f"{threat.title} asks for more images than the evaluation has ({self.n})",
                    where="threats.n",
                    value=threat.n,
                    remedy="raise n of the evaluation, or lower that of the threat",
                )
        return self

    def resolutions_or(self, own: int) -> tuple[int, ...]:
        """The sides to evaluate at, in px; `own` is the model's."""
        return (self.resolution or own,)


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
        """The sides to evaluate at, in px."""
        return self.resolutions
