"""Training curves: loss and probe accuracies of each training stage, from its history of epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.report.charts import CLEAN_STYLE, Styles, figure
from components.report.data import ReportStage
from components.report.figures import number, percent
from components.report.markup import Markup, element, join
from components.report.plots import Axis, Point, Series, chart, fraction_axis, number_axis

_LOSS = ("loss", "train_loss")
_CLEAN = ("clean_accuracy", "clean", "probe_clean", "clean_probe")
_ROBUST = ("robust_accuracy", "robust", "probe_robust", "robust_probe")


def curve_cards(stages: Sequence[ReportStage], styles: Styles) -> list[Markup]:
    """A card for every stage that has a history: accuracy over loss."""
    cards = [_card(f"curve-{i}", stage, styles.get(stage.name, 0)) for i, stage in enumerate(stages) if stage.history]
    return [card for card in cards if card is not None]


def _card(key: str, stage: ReportStage, style: int) -> Markup | None:
    loss = Series("training loss", style, _points(stage.history, _LOSS, "loss {value:.3f}"))
    lines = [
        Series("clean (probe)", CLEAN_STYLE, _points(stage.history, _CLEAN, "clean {percent}"), dashed=True),
        Series("under attack (probe)", style, _points(stage.history, _ROBUST, "under attack {percent}")),
    ]
    lines = [line for line in lines if line.points]
    drawn = [_drawn(f"{key}-a", stage.name, "Accuracy", fraction_axis("accuracy (%)"), lines)] if lines else []
    if loss.points:
        top = number_axis("training loss", [0.0, *(point.y for point in loss.points)])
        drawn.append(_drawn(f"{key}-l", stage.name, "Training loss", top, [loss]))
    kind = f" · {stage.kind}" if stage.kind != stage.name else None
    caption = [element("b", stage.name), kind]
    return figure(join(drawn), caption, lines) if drawn else None


def _drawn(key: str, name: str, what: str, y: Axis, lines: Sequence[Series]) -> Markup:
    epochs = [point.x for line in lines for point in line.points]
    last = "; ".join(f"{line.label}, last {line.points[-1].tip}" for line in lines)
    x = number_axis("epoch", epochs, whole=True)
    return chart(key, f"{what} of {name} by epoch", last, x, y, lines, height=210)


def _points(history: Sequence[Mapping[str, Any]], keys: Sequence[str], words: str) -> list[Point]:
    found = []
    for position, entry in enumerate(history):
        if not isinstance(entry, Mapping):
            continue
        value = next((number(entry[key]) for key in keys if number(entry.get(key)) is not None), None)
        epoch = number(entry.get("epoch"))
        if value is not None:
            x = float(position) if epoch is None else epoch
            said = words.format(value=value, percent=percent(value))
            found.append(Point(x, value, tip=f"epoch {x:g}: {said}"))
    return found
