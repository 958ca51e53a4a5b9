"""Typed records that stages leave for others, besides the results of evaluations (see `components.result_rows`).

- `history.json` of a training stage, and the events of its monitor;
- the live progress file of a running stage;
- `gallery/gallery.json` of an evaluation.

Key names are defined here and nowhere else. Accuracies are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from components.result_rows import Row, read_document
from components.threats import threat_text

HISTORY, GALLERY_INDEX, SPECTRA = "history.json", "gallery/gallery.json", "results/spectra.json"
"""Artifact paths of the documents."""


class HistoryEntry(TypedDict):
    """One epoch of a training stage, an entry of `history.json`; accuracies are on held-out training images.

    The entry also has what the optimizer and the machine did (`attack_gain`, `grad_norm`, `images_per_s`, ...) and
    `robust_accuracy_<norm>` for the validation's extra norms.
    """

    epoch: int
    step: int
    lr: float
    loss: float
    clean_accuracy: NotRequired[float]
    robust_accuracy: NotRequired[float]


def history_entries(document: object) -> list[Mapping[str, Any]]:
    """The entries of a `history.json` (see `HistoryEntry`), in order; an empty list for a stage that has none."""
    return [entry for entry in document if isinstance(entry, Mapping)] if isinstance(document, list) else []


class MonitorEvent(TypedDict):
    """A failure signature when it appeared in a training: an entry of `monitor.events` of the stage's result.

    Attributes:
        sentence: what was seen.
        action: what followed: `warn`, `stop` or `rollback`.
        lr_scale: factor on the learning rate from then on.
    """

    epoch: int
    signature: str
    sentence: str
    action: str
    lr_scale: float


def monitor_events(result: Mapping[str, Any]) -> list[MonitorEvent]:
    """The events in the result of a training stage, in order; an empty list for a result without a monitor."""
    return list((result.get("monitor") or {}).get("events", []))


class ProgressReport(TypedDict):
    """The live progress file of a stage.

    Attributes:
        stage: the stage's name.
        time: of writing, seconds since 1970.
        state: `running`, `complete`, `reused` or `failed`.
        phase, done, total, unit, rate, note: progress of a running stage; `rate` is in units per second.
    """

    stage: str
    time: float
    state: str
    phase: NotRequired[str]
    done: NotRequired[int]
    total: NotRequired[int]
    unit: NotRequired[str]
    rate: NotRequired[float]
    note: NotRequired[str]


class GalleryEntry(Row):
    """One sample of an evaluation's gallery: an entry of `gallery/gallery.json`.

    Attributes:
        clean, adversarial, difference: names or paths of PNG files.
        index: row of the image in the encoded split.
        label, clean_prediction, adversarial_prediction: names of classes.
        attack: the attack's title; `broken_by` the image's verdict.
        distance: norm of the perturbation.
        amplification: factor by which the difference is stretched in its picture.
    """

    clean: str
    adversarial: str
    difference: str
    index: int
    label: str
    clean_prediction: str
    adversarial_prediction: str
    norm: str
    eps: float
    attack: str
    broken_by: str
    distance: float
    amplification: float
    resolution: int

    @property
    def threat(self) -> str:
        """Norm and radius: `Linf 4/255`."""
        return threat_text(self.norm, self.eps)


def read_gallery(document: object, *, where: str) -> list[GalleryEntry]:
    """Reads `gallery.json`; an empty list for None.

    Args:
        document: the parsed JSON.
        where: the stage it is from, for the message.

    Raises:
        UserError: it is not such a document, or was written by another version of Robustrain.
    """
    entries = document if isinstance(document, list) else []
    return [read_document(GalleryEntry, entry, where=where) for entry in entries]
