"""The published results for the same networks, and how this run's results compare with them.

The published results are in `published.csv`, with clean and robust accuracy in per cent. Its column `source`:

- README: the README of the paper's repository (nmndeep/revisiting-at), October 2023
- RobustBench: the leaderboard's own evaluation, state of March 2025
- AdvXL: Wang et al., CVPR 2024, Table 5, which quotes the paper
- author: the first author in issue 5 of the paper's repository

All are AutoAttack (standard) on RobustBench's 5 000 ImageNet validation images.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from components.report.data import Measurement
from components.report.model_pairs import base_name
from components.threats import STANDARD, parse_radius, same_radius, threat_text
from components.wording import percent, points

PUBLISHED_N = 5000
"""Number of images behind every published result."""

FINE_TUNED = "fine-tuned"
"""Value of `epochs` for a model that was fine-tuned to another radius."""

_IMAGENET = {"imagenet", "imagenet1k", "ilsvrc2012"}
_ALIASES = {"deit_small": "vit_small", "deit3_medium": "vit_medium"}


@dataclass(frozen=True)
class Published:
    """One published result: accuracies as fractions, at `resolution` px."""

    title: str
    model: str
    stem: str
    norm: str
    eps: float
    resolution: int
    epochs: str
    clean: float
    robust: float
    source: str

    @property
    def threat(self) -> str:
        """Norm and radius: `Linf 4/255`."""
        return threat_text(self.norm, self.eps)


@cache
def published_results() -> tuple[Published, ...]:
    """The rows of `published.csv`, in their order."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_published(row) for row in csv.DictReader(file))


def _published(row: dict[str, str]) -> Published:
    return Published(
        title=row["title"],
        model=row["model"],
        stem=row["stem"],
        norm=row["norm"],
        eps=float(parse_radius(row["eps"])),
        resolution=int(row["resolution"]),
        epochs=row["epochs"],
        clean=float(row["clean_percent"]) / 100,
        robust=float(row["robust_percent"]) / 100,
        source=row["source"],
    )


@dataclass(frozen=True)
class AgainstPaper:
    """A result of this run beside the published one, and a sentence on what their difference means."""

    ours: Measurement
    published: Published
    comparable: bool
    words: str


def against_paper(rows: Sequence[Measurement]) -> list[AgainstPaper]:
    """This run's results for networks, stems, norms, radii and resolutions that have a published result."""
    return [
        _compared(ours, published)
        for ours in rows
        for published in published_results()
        if _same_model(ours, published) and _same_threat(ours, published)
    ]


def _compared(ours: Measurement, published: Published) -> AgainstPaper:
    if reasons := _obstacles(ours):
        return AgainstPaper(ours, published, False, f"not comparable: {'; '.join(reasons)}")
    gap = f"{points(ours.row.robust_accuracy - published.robust)} points"
    within = "inside" if ours.low <= published.robust <= ours.high else "outside"
    images = "" if ours.row.n == PUBLISHED_N else f"; n = {ours.row.n} here, {PUBLISHED_N} there"
    words = f"{gap}; {percent(published.robust)} is {within} our interval{images}"
    return AgainstPaper(ours, published, True, words)


def _obstacles(ours: Measurement) -> list[str]:
    """Reasons why a result must not be compared with the published one."""
    reasons = ["trained without an attack"] if ours.trained_under_attack is False else []
    classes = ours.source.conditions.classes if ours.source.conditions else 1000
    if "".join(filter(str.isalnum, ours.row.dataset.lower())) not in _IMAGENET:
        reasons.append(f"data set {ours.row.dataset}, not ImageNet")
    elif classes != 1000:
        reasons.append(f"{classes} classes, not 1000")
    if ours.row.attack != STANDARD.title:
        reasons.append(f"{ours.row.attack}, not {STANDARD.title}")
    return reasons


def _same_model(ours: Measurement, published: Published) -> bool:
    base = base_name(ours.row.model.split(".")[0]).removesuffix("_patch16_224")
    return _ALIASES.get(base, base) == published.model and ours.row.stem_title == published.stem


def _same_threat(ours: Measurement, published: Published) -> bool:
    fine_tuned = ours.fine_tuned_to_another_threat
    if fine_tuned is not None and fine_tuned != (published.epochs == FINE_TUNED):
        return False
    same = ours.row.norm == published.norm and same_radius(ours.row.eps, published.eps)
    return same and ours.row.resolution == published.resolution
