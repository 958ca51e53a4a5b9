"""One stage as the report sees it: what it was asked to do and the plain data it left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROBUST_KINDS = ("adversarial", "radius")
"""Kinds of stage whose model was trained under attack; `transfer` may or may not have been."""

CLEAN_KINDS = ("pretrain", "convstem")
"""Kinds of stage whose model was trained without an attack."""

KIND_TITLES = {
    "pretrain": "clean",
    "convstem": "clean, new stem",
    "adversarial": "adversarially trained",
    "radius": "larger radius",
    "transfer": "transferred",
}


@dataclass(frozen=True)
class ReportStage:
    """A stage of the pipeline, finished or not.

    `state` is "ran", "reused", "failed" or another word, shown as it is. `history` has one dictionary an epoch,
    `rows` and `union` one a figure (see `Measurement.from_row`), `conditions` what holds for all of them, `gallery`
    one a sample with `label`, `clean_prediction`, `adversarial_prediction`, `norm`, `eps` and the paths of three PNG
    files under `clean`, `adversarial` and `difference`. `verdicts` and `spectra` are an evaluation's documents of these
    names. `data` is the fingerprint of the data set that was read. Whatever is missing is left out of the page.
    """

    name: str
    kind: str
    run_id: str = ""
    fingerprint: str = ""
    state: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    union: Sequence[Mapping[str, Any]] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    gallery: Sequence[Mapping[str, Any]] = ()
    verdicts: Mapping[str, Any] = field(default_factory=dict)
    spectra: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""

    @property
    def failed(self) -> bool:
        """Whether the stage ended without its outputs, so that the page has to say so."""
        return self.state.lower() in {"failed", "error", "cancelled", "interrupted"}
