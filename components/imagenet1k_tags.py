"""The one rule for "these timm weights were trained on ImageNet-1k alone", by timm's naming of tags.

It is used when a recipe is checked and again when weights are loaded. No torch, no timm.
"""

from __future__ import annotations

OTHER_DATA = (
    "in12k",
    "in21k",
    "in22k",
    "jft",
    "laion",
    "yfcc",
    "ig1b",
    "lvd",
    "clip",
    "dino",
    "ssld",
    "merged",
    "cc12m",
)
"""Beginnings of parts of tags whose weights have seen more than ImageNet-1k."""

FINE_TUNED, NOISY_STUDENT = "ft", "ns"
"""Parts of tags of weights that were fine-tuned from such, or trained with pseudo-labels of other images."""


def other_data_in(tag: str) -> list[str]:
    """The parts of a tag that name other or further data than ImageNet-1k, in lower case.

    Args:
        tag: "network.tag" or the tag alone, such as "convnext_tiny.fb_in1k" or "fb_in1k".
    """
    parts = _parts(tag)
    return [part for part in parts if part in (FINE_TUNED, NOISY_STUDENT) or part.startswith(OTHER_DATA)]


def is_imagenet1k(tag: str) -> bool:
    """Whether a tag names weights that were trained on ImageNet-1k alone.

    A network without a tag does not: timm would choose one, and its defaults since 1.0 have seen other data.
    """
    return "in1k" in _parts(tag) and not other_data_in(tag)


def _parts(tag: str) -> list[str]:
    return tag.rsplit(".", 1)[-1].lower().split("_")
