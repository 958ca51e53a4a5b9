"""What a report can be asked for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from components.fingerprint import NO_FINGERPRINT


class ReportConfig(BaseModel):
    """The page that ends a run; it covers every stage of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = Field(
        "", description="heading of the page; default: the recipe's name", json_schema_extra=NO_FINGERPRINT
    )
