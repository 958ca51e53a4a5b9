"""Configuration of the `report` stage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.errors import UserError
from components.fingerprint import NO_FINGERPRINT, WHEN_SET


class PairConfig(BaseModel):
    """Two evaluations that are compared on the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    first: str = Field(description="name of the evaluate stage whose model is compared")
    second: str = Field(description="name of the evaluate stage with the model it is compared with")


class ExperimentConfig(BaseModel):
    """A question and the evaluations whose comparison answers it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    question: str = Field(min_length=1, description="what the experiment asks, as a sentence")
    baseline: str = Field("", description="evaluate stage that every one of `against` is compared with")
    against: tuple[str, ...] = Field(
        (), description="evaluate stages that are compared with the baseline; the baseline may be one of them"
    )
    pairs: tuple[PairConfig, ...] = Field((), description="further pairs: {first: ..., second: ...}")
    frontier: tuple[str, ...] = Field(
        (), description="evaluate stages drawn as clean against robust accuracy; dominated models are named"
    )
    limits: str = Field("", description="what this experiment cannot show, whatever its results, as sentences")

    @model_validator(mode="after")
    def _complete(self) -> ExperimentConfig:
        if bool(self.baseline) != bool(self.against):
            missing = "against" if self.baseline else "baseline"
            what = "`baseline` and `against` need each other"
            raise UserError(
                what, where=f"experiment.{missing}", remedy=f"name the evaluate stages in {missing}, or leave out both"
            )
        if not (self.compared or self.frontier):
            what = "this experiment compares nothing"
            raise UserError(what, where="experiment.pairs", remedy="set baseline and against, pairs, or frontier")
        for first, second in self.compared:
            if first == second:
                remedy = "name two evaluate stages"
                raise UserError("a stage is compared with itself", where="experiment.pairs", value=first, remedy=remedy)
        return self

    @property
    def compared(self) -> list[tuple[str, str]]:
        """(first, second) names of every comparison, in order; the baseline is not compared with itself."""
        found = [(name, self.baseline) for name in self.against if name != self.baseline]
        return [*found, *((pair.first, pair.second) for pair in self.pairs)]

    @property
    def stages(self) -> dict[str, str]:
        """Configuration field, such as `against.0`, -> name of the stage that it refers to."""
        fields = {"baseline": self.baseline} if self.baseline else {}
        fields |= {f"against.{i}": name for i, name in enumerate(self.against)}
        for i, pair in enumerate(self.pairs):
            fields |= {f"pairs.{i}.first": pair.first, f"pairs.{i}.second": pair.second}
        return fields | {f"frontier.{i}": name for i, name in enumerate(self.frontier)}


class ReportConfig(BaseModel):
    """The page at the end of a run. It covers every stage of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = Field(
        "", description="heading of the page; default: the recipe's name", json_schema_extra=NO_FINGERPRINT
    )
    experiment: ExperimentConfig | None = Field(
        None,
        description="a question and the evaluations that answer it; none: the page has no such section",
        json_schema_extra=WHEN_SET,
    )
