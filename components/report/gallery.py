"""The gallery: clean image, adversarial image and their difference, with what the model saw in each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.report.data import ReportStage
from components.report.figures import number, radius
from components.report.markup import Markup, element, join

MOST_SAMPLES = 24
MOST_BYTES = 1_000_000
SMALL_SIDE = 64
"""Pictures up to this width in px are shown with square pixels, larger ones smoothly."""

_WIDTH = slice(16, 20)  # of a PNG file: the width in its header, big-endian
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURES = ("clean", "adversarial", "difference")


def galleries(stages: Sequence[ReportStage]) -> list[Markup]:
    """A gallery for each stage that has samples; at most `MOST_SAMPLES` are embedded, and the rest is counted."""
    return [_gallery(stage) for stage in stages if stage.gallery]


def _gallery(stage: ReportStage) -> Markup:
    samples = [sample for sample in stage.gallery if isinstance(sample, Mapping)]
    left = len(samples) - MOST_SAMPLES
    model = stage.config.get("model")
    title = [element("b", str(model or stage.name)), f" · measured by stage {stage.name}"]
    more = element("p", f"{left} more samples are in the stage's artifacts.", class_="note") if left > 0 else None
    cards = [_sample(sample) for sample in samples[:MOST_SAMPLES]]
    return join(element("h3", title), element("div", cards, class_="gallery"), more)


def _sample(sample: Mapping[str, Any]) -> Markup:
    label, clean, adversarial = (
        _word(sample.get(key)) for key in ("label", "clean_prediction", "adversarial_prediction")
    )
    held = adversarial == label
    factor = number(sample.get("amplification"))
    titles = {**{key: key for key in _PICTURES}, "difference": f"difference ×{factor:.3g}" if factor else "difference"}
    pictures = [_picture(sample.get(key), f"{key} image of {label}", title) for key, title in titles.items()]
    threat = f"{_word(sample.get('norm'))} {radius(number(sample.get('eps')))}"
    return element(
        "article",
        element("div", pictures, class_="triple"),
        element(
            "dl",
            _fact("label", label),
            _fact("clean", clean, clean == label),
            _fact("threat", threat),
            _fact("attacked", adversarial, held),
        ),
        class_="sample",
    )


def _fact(name: str, value: str, right: bool | None = None) -> Markup:
    verdict = None if right is None else element("span", "✓" if right else "✗", title="right" if right else "wrong")
    state = None if right is None else "right" if right else "wrong"
    return element("div", element("dt", name), element("dd", value, " " if verdict else None, verdict, class_=state))


def _picture(path: object, alternative: str, title: str) -> Markup:
    content = _png(path)
    if content is None:
        shown = element("span", "image missing", class_="missing")
    else:
        small = int.from_bytes(content[_WIDTH], "big") <= SMALL_SIDE
        source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        shown = element("img", src=source, alt=alternative, loading="lazy", class_="pixels" if small else None)
    return element("figure", shown, element("figcaption", title))


def _png(path: object) -> bytes | None:
    """The file, or `None` where it is missing, not a PNG or too large to carry in a page."""
    if not isinstance(path, str | Path) or not str(path):
        return None
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            return None
        content = Path(path).read_bytes()
    except (OSError, ValueError):
        return None
    return content if content.startswith(_SIGNATURE) else None


def _word(value: object) -> str:
    return "–" if value is None or value == "" else str(value)
