"""THE stage table: for each kind of stage what it needs, where it runs, at what size, and its code version.

Everything that differs between kinds is a row here; recipe, plan, runner and graph read the table and hold no lists of
kinds. To add a kind of stage, add one row and write its code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.data.config import EncodeConfig
from components.evaluate.config import EvaluateConfig, SweepConfig
from components.launch.resources import Resources
from components.promote.config import PromoteConfig
from components.report.config import ReportConfig
from components.store.objects import list_prefix
from components.train.config import AdversarialConfig, ConvStemConfig, PretrainConfig, RadiusConfig, TransferConfig

STAGE_NAME = re.compile(r"[a-z][a-z0-9-]{0,35}")
"""A stage's name becomes part of a Kubernetes object's name (47 characters with the fingerprint's first ten)."""
NAME_RULE = "a stage's name has at most 36 lower-case letters, digits and hyphens and begins with a letter"
"""The rule for names, in messages."""

DATA, MODEL, EVALUATION, SWEEP = "data", "model", "evaluation", "sweep"
"""What a kind of stage can make for others, see `StageKind.makes`."""


@dataclass(frozen=True)
class Role:
    """A parent that a kind of stage refers to.

    Attributes:
        makes: what the parent has to make; every kind that makes it can fill the role.
        required: whether the recipe must name one.
        literals: prefixes of values that are no stage names (`random`, `timm:...`, `file:...`).
    """

    makes: str
    required: bool = True
    literals: tuple[str, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """The kinds that can fill the role, in the order of the table."""
        return [kind.name for kind in STAGES.values() if kind.makes == self.makes]

    def names_stage(self, value: str | None) -> bool:
        """Whether a configuration value refers to a stage."""
        return bool(value) and not any(value == p or value.startswith(p) for p in self.literals)  # type: ignore[union-attr]


def _one_second(config: BaseModel) -> float:
    return 1.0


@dataclass(frozen=True)
class StageKind:
    """One row of the table.

    Attributes:
        version: part of the fingerprint; raised when the code's results change (golden results fail until it is).
        entry: `module:function` that does the work.
        makes: what its outputs are to other stages (`DATA`, `MODEL`, ...); empty if no other stage refers to them.
        roles: configuration field -> the parent that it names.
        covers_all: its parents are all reported stages of the recipe.
        reported: whether stages that cover all others have it among their parents.
        seconds: configuration -> estimated time, relative to the quickstart's on one core; the runner starts the stages
            on the longest path first.
        digest: `module:function` that digests the files that a configuration names, such as images or a list of them.
        classes: `module:function` that checks the source data and returns its classes, if they are known before it is
            read; only for kinds that read raw data.
        resources: what its RayJob asks of a cluster; None if the KFP step does the work itself, without torch.
        retries: how often KFP tries the step again; a retry continues from the last complete checkpoint.
    """

    name: str
    summary: str
    version: int
    config: type[BaseModel]
    entry: str
    makes: str = ""
    roles: dict[str, Role] = field(default_factory=dict)
    covers_all: bool = False
    reported: bool = True
    seconds: Callable[[Any], float] = _one_second
    digest: str = ""
    classes: str = ""
    resources: Resources | None = None
    retries: int = 1

    @property
    def package(self) -> str:
        """The package of `components` that holds the code; empty for stages of the pipeline itself."""
        root, package = self.entry.split(".")[:2]
        return package if root == "components" else ""

    @property
    def trains(self) -> bool:
        """Whether it makes a model's weights."""
        return self.makes == MODEL

    @property
    def measures(self) -> bool:
        """Whether it measures a model: it writes `results.json` and `verdicts.json`."""
        return self.makes in (EVALUATION, SWEEP)

    def function(self) -> Callable[..., Any]:
        """The stage's `run(job)`, imported now."""
        return resolve(self.entry)

    def source_digest(self, config: BaseModel, cache: Path) -> str:
        """Digest of the files that a configuration names; empty for kinds that read none.

        Args:
            cache: folder where digests of unchanged folders are kept.
        """
        return resolve(self.digest)(config, cache=cache, list_prefix=list_prefix) if self.digest else ""

    def source_classes(self, config: BaseModel) -> tuple[str, ...] | None:
        """Checks the raw data that a configuration names, and returns its classes; None if they are not known yet.

        Raises:
            UserError: the data cannot be used.
        """
        return resolve(self.classes)(config) if self.classes else None


def resolve(address: str) -> Callable[..., Any]:
    """Imports `module:function`. By name, so that the table costs nothing to read and pulls in no torch."""
    module, _, function = address.partition(":")
    return getattr(importlib.import_module(module), function)


_SECONDS_PER_PASS = 1.6
"""Of an epoch of the quickstart, for each forward and backward pass: one for the update, one for each attack step."""

_TRAIN_SIZE = Resources(cpus=16, memory_gib=128, gpus=1, workers=8, deadline_s=14 * 24 * 3600)
_ATTACK_SIZE = Resources(cpus=8, memory_gib=64, gpus=1, deadline_s=3 * 24 * 3600)


def _training_seconds(config: Any) -> float:
    return config.epochs * _SECONDS_PER_PASS * (1 + (config.attack.steps if config.attack else 0))


def _training(name: str, summary: str, config: type[BaseModel]) -> StageKind:
    return StageKind(
        name,
        summary,
        version=3,
        config=config,
        entry="components.train.stage:run",
        makes=MODEL,
        roles={"data": Role(DATA), "init": Role(MODEL, literals=("random", "timm:", "file:"))},
        seconds=_training_seconds,
        resources=_TRAIN_SIZE,
        retries=2,
    )


def _measuring(name: str, summary: str, config: type[BaseModel], makes: str) -> StageKind:
    return StageKind(
        name,
        summary,
        version=5,
        config=config,
        entry="components.evaluate.stage:run",
        digest="components.evaluate.image_list:images_digest",
        makes=makes,
        roles={"model": Role(MODEL), "data": Role(DATA, required=False)},
        seconds=lambda config: config.estimated_seconds,
        resources=_ATTACK_SIZE,
    )


STAGES: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        StageKind(
            "encode",
            "encode images into FFCV .beton files",
            version=3,
            config=EncodeConfig,
            entry="components.data.stage:run",
            makes=DATA,
            digest="components.data.config:source_digest",
            classes="components.data.config:source_classes",
            resources=Resources(cpus=16, memory_gib=32, deadline_s=24 * 3600),
        ),
        _training("pretrain", "clean weights: trained here, a timm tag, or a file", PretrainConfig),
        _training("convstem", "replace PatchStem by ConvStem and fine-tune clean", ConvStemConfig),
        _training("adversarial", "adversarial training: APGD and EMA", AdversarialConfig),
        _training("radius", "fine-tune to a larger radius or another norm", RadiusConfig),
        _training("transfer", "fine-tune on another data set", TransferConfig),
        _measuring("evaluate", "clean accuracy and AutoAttack in each threat model", EvaluateConfig, EVALUATION),
        _measuring("sweep", "the same at several test resolutions", SweepConfig, SWEEP),
        StageKind(
            "promote",
            "register the model; champion only through the gate",
            version=2,
            config=PromoteConfig,
            entry="components.promote.stage:run",
            roles={"model": Role(MODEL), "evaluation": Role(EVALUATION)},
            reported=False,
        ),
        StageKind(
            "report",
            "tables, plots, gallery: one HTML page",
            version=4,
            config=ReportConfig,
            entry="components.report.stage:run",
            covers_all=True,
            reported=False,
        ),
    )
}
"""Kind -> row, in the order of the recipe of the paper."""
