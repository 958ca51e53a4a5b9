"""What each section of the page shows, worked out from the stages. A section without data is left out of the page.

The wording of fixed text is in `page.html.j2`; sentences that depend on the data are written here.
"""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.report import charts
from components.report.charts import WHITE_NOISE_SHARE, Styles, spectrum_charts, spectrum_rows
from components.report.compare import Comparison, compare
from components.report.data import Measurement, ReportStage, grouped, measurements, worst_cases
from components.report.experiment import Experiment, experiment_limits, summary
from components.report.headline import Headline, find_headline
from components.report.model_pairs import config_differences, radius_gains, stem_pairs
from components.report.paper import against_paper, published_results
from components.stage_records import GalleryEntry, MonitorEvent, monitor_events
from components.statistics import Z95
from components.threats import ATTACKS, STANDARD
from components.wording import NBSP, count, listed, sample_size

MOST_SAMPLES = 24
"""Samples that one stage's gallery shows."""

MOST_BYTES = 1_000_000
"""Size in bytes up to which a picture is embedded in the page."""

SMALL_SIDE = 64
"""Pictures up to this width in px are shown with square pixels, larger ones smoothly."""

_WIDTH = slice(16, 20)  # of a PNG file: the width in its header, big-endian
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PACKAGES = ("robustrain", "kfp", "mlflow", "torch", "timm", "ray", "pyautoattack")


@dataclass(frozen=True)
class ReportData:
    """What all sections read.

    Attributes:
        stages: of the run, in order.
        rows: every measurement; `native` without those of sweeps.
        styles: training stage -> number of its style.
        headline: the key figures.
    """

    stages: Sequence[ReportStage]
    rows: Sequence[Measurement]
    native: Sequence[Measurement]
    styles: Styles
    headline: Headline

    @classmethod
    def of(cls, stages: Sequence[ReportStage]) -> ReportData:
        """Works out the measurements, the models' styles and the headline."""
        rows, native = measurements(stages), measurements(stages, sweep=False)
        measured = [one.stage for one in rows]
        trained = [stage.name for stage in stages if stage.history or stage.name in measured]
        styles = {name: i for i, name in enumerate(dict.fromkeys([*trained, *measured]))}
        return cls(stages, rows, native, styles, find_headline(native or rows))


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: its anchor, and the name of its macro in the template.
        title: its heading.
        content: what the macro shows, by name.
    """

    key: str
    title: str
    content: Mapping[str, Any] = field(default_factory=dict)


def all_sections(data: ReportData, recipe: Mapping[str, Any], experiment: Experiment | None) -> Iterator[Section]:
    """The sections that have something to show, in reading order."""
    if experiment is not None:
        yield _experiment(data, experiment)
    yield from _figures(data)
    yield Section("paper", "Comparison with the paper", _paper(data))
    if data.stages:
        yield Section("stages", "Stages", {"stages": data.stages})
    yield Section("conditions", "Conditions and versions", {"blocks": _conditions(data.stages)})
    if recipe:
        yield Section("recipe", "Recipe", {"recipe": recipe})


def _figures(data: ReportData) -> Iterator[Section]:
    """The sections with the run's own results."""
    if data.rows:
        groups = grouped(data.rows, lambda one: (one.stage, one.row.dataset)).values()
        content = {"groups": list(groups), "rivals": _rivals(data), "limits": _limits(data.rows)}
        yield Section("results", "Robust accuracy with its conditions", content)
    if worst := worst_cases(data.stages):
        yield Section("worst", "Worst case over the norms", {"rows": worst})
    if pairs := stem_pairs(data.native):
        yield Section("stems", "ConvStem against PatchStem", {"pairs": _stems(data, pairs)})
    if spectra := spectrum_rows(data.stages):
        figures = spectrum_charts(data.stages, data.styles)
        yield Section("spectra", "Spectra", {"charts": figures, "rows": spectra, "white": WHITE_NOISE_SHARE})
    if data.native:
        gains = radius_gains(data.stages, data.native)
        content = {"charts": charts.radius_charts(data.native, data.styles), "gains": gains}
        yield Section("radius", "Robust accuracy against the radius", content)
    if sweeps := charts.sweep_charts(measurements(data.stages, sweep=True), data.styles):
        yield Section("sweep", "Test resolution", {"charts": sweeps})
    if tradeoffs := charts.tradeoff_charts(data.native, data.styles):
        yield Section("tradeoff", "Clean against robust accuracy", {"charts": tradeoffs})
    if curves := charts.curve_charts(data.stages, data.styles):
        yield Section("curves", "Training curves", {"charts": curves, "warnings": training_warnings(data.stages)})
    if galleries := [stage for stage in data.stages if stage.gallery]:
        yield Section("gallery", "Gallery", {"galleries": [_gallery(stage) for stage in galleries]})


def _experiment(data: ReportData, found: Experiment) -> Section:
    drawn = [charts.frontier_chart(f"frontier-{i}", one, data.styles) for i, one in enumerate(found.frontiers)]
    content = {"found": found, "summary": summary(found), "charts": drawn, "limits": experiment_limits(found)}
    return Section("experiment", "The experiment", content)


def _rivals(data: ReportData) -> list[Comparison]:
    """The headline's model against every other one that was measured under the same conditions."""
    best = data.headline.robust
    if best is None:
        return []
    others = [one for one in data.native if one.setting == best.setting and one.stage != best.stage]
    return [compare(best, other) for other in others]


def _limits(rows: Sequence[Measurement]) -> list[str]:
    """What the figures can and cannot show: sample sizes, shorter attacks, zeros, and the evaluations' own notes."""
    widths = [f"{100 * half_width(n):.0f} points at {sample_size(n)}" for n in sorted({one.row.n for one in rows})]
    sentences = [
        f"The interval of a figure near 50{NBSP}% reaches about {listed(widths)} to either side. Two models on the "
        "same images are compared image by image, and may differ clearly although their intervals overlap. A "
        f"difference is called shown if the 95{NBSP}% interval of the paired difference (Newcombe 1998) does not "
        "contain 0 and the exact test of the images on which they disagree (McNemar) is significant at "
        f"5{NBSP}%. No difference shown is no proof of equality."
    ]
    short = sorted({attack.title for attack in ATTACKS.values() if STANDARD.includes(attack) and attack != STANDARD})
    if used := [title for title in short if any(one.row.attack == title for one in rows)]:
        sentences.append(
            f"{listed(used)}: a part of {STANDARD.title}. The full attack can only lower these figures (hollow marks "
            "below)."
        )
    sentences += [
        f"{one.stage}, {one.row.threat}: none of {count(one.row.n)} images withstood the attack; the share may still "
        f"be up to {100 * one.high:.1f}{NBSP}%."
        for one in rows
        if one.row.robust_accuracy == 0
    ]
    return sentences + _notes(rows)


def half_width(n: int, share: float = 0.5) -> float:
    """Half the width of a 95 % interval of a share measured on n images (normal approximation)."""
    return Z95 * (share * (1 - share) / n) ** 0.5


def _notes(rows: Sequence[Measurement]) -> list[str]:
    """The evaluations' own reservations, each once, with the figures it belongs to."""
    pairs = [(note, f"{one.stage}, {one.row.threat}") for one in rows for note in one.row.details.notes]
    groups = grouped(pairs, lambda pair: pair[0]).items()
    return [f"{note} ({_first_four(list(dict.fromkeys(where for _, where in some)))})." for note, some in groups]


def _first_four(names: list[str]) -> str:
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def _stems(data: ReportData, pairs: Sequence[Sequence[Comparison]]) -> list[dict[str, Any]]:
    return [
        {
            "chart": chart,
            "comparisons": some,
            "differences": config_differences(some[0].first.stage, some[0].second.stage, data.stages),
        }
        for chart, some in zip(charts.stem_charts(pairs, data.styles), pairs, strict=True)
    ]


def _paper(data: ReportData) -> dict[str, Any]:
    models = listed(sorted({one.row.model_title for one in data.rows})) or "nothing"
    return {"found": against_paper(data.rows), "models": models, "published": published_results()}


_ACTIONS = {
    "warn": "The recipe says to warn, so training continued.",
    "rollback": "Training was rolled back to its last good validation, with {lr_scale:g} of the learning rate.",
}


def training_warnings(stages: Sequence[ReportStage]) -> list[tuple[str, str]]:
    """(stage, sentence) for each failure signature that a training recorded, in the stages' order."""
    return [(stage.name, _warning(event)) for stage in stages for event in monitor_events(stage.result)]


def _warning(event: MonitorEvent) -> str:
    action = _ACTIONS.get(event["action"], "").format(lr_scale=event["lr_scale"])
    return f"epoch {event['epoch']}: {event['sentence']}. {action}".rstrip()


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery. `source` is a data URL, empty if the file is missing or no PNG file."""

    title: str
    alternative: str
    source: str
    small: bool = False


def _gallery(stage: ReportStage) -> dict[str, Any]:
    shown = stage.gallery[:MOST_SAMPLES]
    samples = [{"entry": entry, "pictures": _pictures(entry)} for entry in shown]
    return {"stage": stage, "samples": samples, "more": len(stage.gallery) - len(shown)}


def _pictures(entry: GalleryEntry) -> list[Picture]:
    titles = {"clean": "clean", "adversarial": "adversarial", "difference": f"difference ×{entry.amplification:.3g}"}
    return [_picture(getattr(entry, key), f"{key} image of {entry.label}", title) for key, title in titles.items()]


def _picture(path: str, alternative: str, title: str) -> Picture:
    content = _png(path)
    if content is None:
        return Picture(title, alternative, "")
    small = int.from_bytes(content[_WIDTH], "big") <= SMALL_SIDE
    return Picture(title, alternative, f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", small)


def _png(path: str) -> bytes | None:
    """The file; None if it is missing, not a PNG file, or too large to be embedded in a page."""
    try:
        if not path or Path(path).stat().st_size > MOST_BYTES:
            return None
        content = Path(path).read_bytes()
    except (OSError, ValueError):
        return None
    return content if content.startswith(_SIGNATURE) else None


def _conditions(stages: Sequence[ReportStage]) -> list[tuple[str, dict[str, str]]]:
    """(title, facts): what is equal in every evaluation, what is not, and the process that wrote the page."""
    measured = {stage.name: stage.conditions.model_dump(mode="json") for stage in stages if stage.conditions}
    first, *others = list(measured.values()) or [{}]
    shared = {key: value for key, value in first.items() if others and all(one[key] == value for one in others)}
    blocks = [("The same in every evaluation", shared)] if shared else []
    for name, facts in measured.items():
        if own := {key: value for key, value in facts.items() if key not in shared}:
            blocks.append((f"Measured by {name}", own))
    blocks.append(("This page was written with", _versions()))
    return [(title, {key: _fact(value) for key, value in facts.items()}) for title, facts in blocks]


def _fact(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(str(item) for item in value)
    return json.dumps(value, indent=2) if isinstance(value, Mapping | list) else str(value)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {**found, "machine": machine}
