"""The figures that were published for the same networks, and what stands between them and ours.

Sources, as short names used in the tables:
  README      the README of the paper's repository (nmndeep/revisiting-at), October 2023
  RobustBench the leaderboard's own evaluation, state of March 2025
  AdvXL       Wang et al., CVPR 2024, Table 5, which quotes the paper
  author      the first author in issue 5 of the paper's repository
All are AutoAttack (standard) on RobustBench's 5 000 ImageNet validation images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from components.report.data import CLEAN_KINDS
from components.report.figures import percent, points
from components.report.measurement import Measurement
from components.report.stems import base_name

PUBLISHED_N = 5000
FINE_TUNED = "fine-tuned"
"""Epochs of a figure that belongs to a model fine-tuned to another radius, which is the stage kind `radius` here."""

_EPS4, _EPS8 = 4 / 255, 8 / 255


@dataclass(frozen=True)
class Published:
    """One published figure: AutoAttack's robust accuracy and the clean one, fractions, at `resolution` pixels."""

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


def _both(title: str, model: str, stem: str, epochs: int, clean: float, robust: float, source: str) -> Published:
    return Published(title, model, stem, "Linf", _EPS4, 224, str(epochs), clean / 100, robust / 100, source)


_PATCH, _CONV = "PatchStem", "ConvStem"

PUBLISHED = (
    _both("ConvNeXt-iso-CvSt", "convnext_iso", _CONV, 300, 70.2, 45.9, "README"),
    _both("ViT-S", "vit_small", _PATCH, 300, 69.2, 44.0, "README"),
    _both("ViT-S-CvSt", "vit_small", _CONV, 300, 72.56, 48.08, "RobustBench"),
    _both("ConvNeXt-T", "convnext_tiny", _PATCH, 300, 72.4, 48.6, "README"),
    _both("ConvNeXt-T-CvSt", "convnext_tiny", _CONV, 300, 72.72, 49.46, "RobustBench"),
    _both("ViT-M-CvSt", "vit_medium", _CONV, 50, 72.4, 48.8, "README"),
    _both("ConvNeXt-S-CvSt", "convnext_small", _CONV, 50, 74.10, 52.42, "RobustBench"),
    _both("ViT-B", "vit_base", _PATCH, 50, 73.3, 50.0, "README"),
    _both("ConvNeXt-B", "convnext_base", _PATCH, 50, 75.6, 54.3, "README"),
    _both("ViT-B-CvSt", "vit_base", _CONV, 250, 76.30, 54.66, "RobustBench"),
    _both("ConvNeXt-B-CvSt", "convnext_base", _CONV, 250, 75.90, 56.14, "RobustBench"),
    _both("ConvNeXt-L-CvSt", "convnext_large", _CONV, 100, 77.00, 57.70, "RobustBench"),
    Published("ConvNeXt-B-CvSt", "convnext_base", _CONV, "Linf", _EPS4, 256, "250", 0.769, 0.573, "README"),
    Published("ConvNeXt-L-CvSt", "convnext_large", _CONV, "Linf", _EPS4, 320, "100", 0.782, 0.594, "README"),
    Published("ConvNeXt-B-CvSt", "convnext_base", _CONV, "L2", 2.0, 224, "250", 0.752, 0.494, "AdvXL"),
    Published("ConvNeXt-B-CvSt", "convnext_base", _CONV, "L1", 75.0, 224, "250", 0.752, 0.236, "AdvXL"),
    Published("ConvNeXt-L-CvSt", "convnext_large", _CONV, "L2", 2.0, 224, "100", 0.770, 0.470, "AdvXL"),
    Published("ConvNeXt-L-CvSt", "convnext_large", _CONV, "L1", 75.0, 224, "100", 0.770, 0.222, "AdvXL"),
    Published("ConvNeXt-L-CvSt", "convnext_large", _CONV, "L2", 2.0, 320, "100", 0.782, 0.562, "AdvXL"),
    Published("ConvNeXt-L-CvSt", "convnext_large", _CONV, "L1", 75.0, 320, "100", 0.782, 0.338, "AdvXL"),
    Published("ConvNeXt-T-CvSt", "convnext_tiny", _CONV, "Linf", _EPS8, 224, FINE_TUNED, 0.686, 0.295, "author"),
    Published("ConvNeXt-B-CvSt", "convnext_base", _CONV, "Linf", _EPS8, 224, FINE_TUNED, 0.717, 0.332, "author"),
)

_IMAGENET = {"imagenet", "imagenet1k", "ilsvrc2012"}
_ALIASES = {"deit_small": "vit_small", "deit3_medium": "vit_medium"}


@dataclass(frozen=True)
class AgainstPaper:
    """One of our figures beside the published one, and the sentence that says what their difference is worth."""

    ours: Measurement
    published: Published
    comparable: bool
    words: str


def against_paper(
    rows: Sequence[Measurement], classes: Mapping[str, int] | None = None, imported: Collection[str] = ()
) -> list[AgainstPaper]:
    """Our figures whose network, stem, norm, radius and resolution were published.

    Args:
        rows: this run's figures.
        classes: number of classes by data set name, where known; an ImageNet of other than 1,000 is not comparable.
        imported: names of stages whose weights came from a file, so that their kind says nothing of their training.
    """
    found = []
    for ours in rows:
        for published in PUBLISHED:
            if ours.robust is not None and _same_model(ours, published) and _same_threat(ours, published):
                clean = ours.kind in CLEAN_KINDS and ours.name not in imported
                found.append(_judged(ours, published, _obstacles(ours, classes or {}, clean)))
    return found


def _judged(ours: Measurement, published: Published, reasons: Sequence[str]) -> AgainstPaper:
    if reasons:
        return AgainstPaper(ours, published, False, f"not comparable: {'; '.join(reasons)}")
    assert ours.robust is not None
    gap = f"{points(ours.robust - published.robust)} points"
    if ours.low is None or ours.high is None:
        return AgainstPaper(ours, published, True, f"{gap}; no interval recorded")
    inside = ours.low <= published.robust <= ours.high
    within = "inside" if inside else "outside"
    images = "" if ours.n == PUBLISHED_N else f"; n = {ours.n} here, {PUBLISHED_N} there"
    return AgainstPaper(ours, published, True, f"{gap}; {percent(published.robust)} lies {within} our interval{images}")


def _obstacles(ours: Measurement, classes: Mapping[str, int], clean: bool) -> list[str]:
    reasons = ["trained without an attack"] if clean else []
    known = classes.get(ours.dataset)
    if "".join(filter(str.isalnum, ours.dataset.lower())) not in _IMAGENET:
        reasons.append(f"data set {ours.dataset}, not ImageNet")
    elif known is not None and known != 1000:
        reasons.append(f"{known} classes, not 1000")
    if ours.attack != "AutoAttack":
        reasons.append(f"{ours.attack}, not AutoAttack")
    return reasons


def _same_model(ours: Measurement, published: Published) -> bool:
    base = base_name(ours.model.split(".")[0]).removesuffix("_patch16_224")
    return _ALIASES.get(base, base) == published.model and ours.stem == published.stem


def _same_threat(ours: Measurement, published: Published) -> bool:
    if (ours.kind == "radius") != (published.epochs == FINE_TUNED):
        return False
    near = ours.eps is not None and abs(ours.eps - published.eps) < 1e-6
    return near and ours.norm == published.norm and ours.resolution == published.resolution
