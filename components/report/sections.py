"""The sections of the page, each from what the stages left; a section without data says nothing and is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.report.charts import Styles, radius_charts, sweep_charts, tradeoff_charts
from components.report.compare import compare
from components.report.curves import curve_cards
from components.report.data import ReportStage
from components.report.experiment import Experiment, experiment_body
from components.report.figures import NBSP, count, half_width, listed
from components.report.gallery import galleries
from components.report.headline import Headline, find_headline
from components.report.larger_radius import gains
from components.report.lineage import differences
from components.report.markup import Content, Markup, element, join
from components.report.measurement import Measurement, grouped, measurements, unions
from components.report.paper_section import paper_body
from components.report.spectra import spectra_body
from components.report.stems import stem_charts, stem_pairs
from components.report.tables import comparison_table, main_table, union_table
from components.report.troubles import troubles


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading and what stands under it."""

    key: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Material:
    """What all sections draw from, worked out once."""

    stages: Sequence[ReportStage]
    rows: Sequence[Measurement]
    native: Sequence[Measurement]
    styles: Styles
    headline: Headline


def gather(stages: Sequence[ReportStage]) -> Material:
    """Measurements, the models' styles and the headline, from the stages in the pipeline's order."""
    rows = measurements(stages)
    native = measurements(stages, sweep=False)
    trained = [stage.name for stage in stages if stage.history or any(row.name == stage.name for row in rows)]
    styles = {name: i for i, name in enumerate(dict.fromkeys([*trained, *(row.name for row in rows)]))}
    return Material(stages, rows, native, styles, find_headline(native or rows))


def sections(material: Material, experiment: Experiment | None = None) -> list[Section]:
    """All sections with something to say, in reading order."""
    made = [
        _experiment(material, experiment),
        _results(material),
        _worst_case(material),
        _stems(material),
        _spectra(material),
        _radius(material),
        _sweep(material),
        _tradeoff(material),
        _curves(material),
        _gallery(material),
        _paper(material),
    ]
    return [section for section in made if section is not None]


def _experiment(material: Material, experiment: Experiment | None) -> Section | None:
    if experiment is None:
        return None
    return Section("experiment", "The experiment", experiment_body(experiment, material.styles))


def _spectra(material: Material) -> Section | None:
    body = spectra_body(material.stages, material.styles)
    return Section("spectra", "Spectra", body) if body is not None else None


def _results(material: Material) -> Section | None:
    if not material.rows:
        return None
    note = _paragraph(
        "Each figure is the share of images still classified correctly after the named attack; ", _scale()
    )
    limits = element("div", element("h3", "What these figures can and cannot show"), _limits(material), class_="limits")
    return Section(
        "results",
        "Robust accuracy, with its conditions",
        join(note, main_table(material.rows, material.styles), limits),
    )


def _scale() -> Markup:
    return join("the bar shows it with its 95", NBSP, "% interval on a scale from 0 to 100", NBSP, "%.")


def _limits(material: Material) -> Markup:
    said: list[Content] = [
        *_versus_best(material),
        *_sample_size(material),
        *_short_attacks(material),
        *_zeros(material),
        *_notes(material),
    ]
    return _items(said)


def _items(said: Sequence[Content]) -> Markup:
    return element("ul", [element("li", item) for item in said])


def _versus_best(material: Material) -> list[Content]:
    best = material.headline.robust
    if best is None:
        return []
    others = [
        row for row in material.native if row.under == best.under and row.name != best.name and row.robust is not None
    ]
    return [
        [
            f"Under {best.threat}: “{best.name}” against “{other.name}”: ",
            element("b", compare(best, other).words),
            ".",
        ]
        for other in others
    ]


def _sample_size(material: Material) -> list[Content]:
    sizes = sorted({row.n for row in material.rows if row.n})
    if not sizes:
        return []
    widths = [f"{100 * half_width(n):.0f} points at n{NBSP}={NBSP}{count(n)}" for n in sizes]
    return [
        f"The interval of a figure near 50{NBSP}% reaches about {listed(widths)} to either side. Two models on the "
        "same images are compared image by image, and may differ clearly though their intervals overlap. A difference "
        f"is called shown when the 95{NBSP}% interval of the paired difference (Newcombe 1998) leaves out 0 and the "
        f"exact test of the images on which they disagree (McNemar) says so too, at 5{NBSP}%. No difference shown is "
        "no proof of equality."
    ]


def _short_attacks(material: Material) -> list[Content]:
    short = sorted({row.attack for row in material.rows if row.attack.startswith("APGD")})
    if not short:
        return []
    return [
        f"{listed(short)}: a part of AutoAttack. The full attack can only lower these figures (hollow marks below)."
    ]


def _zeros(material: Material) -> list[Content]:
    zeros = [row for row in material.rows if row.robust == 0 and row.high]
    return [
        f"{row.name}, {row.threat}: none of {count(row.n)} images withstood the attack; the share may still be up to "
        f"{100 * (row.high or 0):.1f}{NBSP}%."
        for row in zeros
    ]


def _notes(material: Material) -> list[Content]:
    """The evaluation's own reservations, each said once with the figures it belongs to."""
    pairs = [(note, f"{row.name}, {row.threat}") for row in material.rows for note in row.notes]
    told = grouped(pairs, lambda pair: pair[0])
    return [f"{note} ({_few(list(dict.fromkeys(where for _, where in some)))})." for note, some in told.items()]


def _few(places: list[str]) -> str:
    return "; ".join(places[:4]) + (f"; and {len(places) - 4} more" if len(places) > 4 else "")


def _worst_case(material: Material) -> Section | None:
    rows = unions(material.stages)
    if not rows:
        return None
    note = _paragraph(
        "An image counts as right only when it withstands every threat of the list, image by image: for each norm the "
        "first radius that the evaluation names. Only lists of the same threats can be compared."
    )
    return Section("worst", "Worst case over the norms", join(note, union_table(rows, material.styles)))


def _stems(material: Material) -> Section | None:
    pairs = stem_pairs(material.native)
    if not pairs:
        return None
    blocks = []
    for chart, some in zip(stem_charts(pairs, material.styles), pairs, strict=True):
        verdicts = comparison_table(some, "ConvStem", "PatchStem")
        blocks.append(element("div", element("div", chart, class_="charts"), verdicts, class_="beside"))
        apart = differences(some[0].first.name, some[0].second.name, material.stages)
        blocks.append(element("div", _items(apart), class_="limits"))
    note = _paragraph(
        "The same network and data set, with one stem or the other, compared image by image. What else is equal "
        "between the two trainings and what is not stands below."
    )
    return Section("stems", "ConvStem against PatchStem", join(note, blocks))


def _radius(material: Material) -> Section | None:
    note = "Each line begins at the clean accuracy (radius 0). Filled marks: AutoAttack. Hollow: a shorter attack."
    title = "Robust accuracy against the radius"
    found = _charts("radius", title, radius_charts(material.native, material.styles), note)
    said = gains(material.stages, material.native)
    if found is None or not said:
        return found
    told = element("div", element("h3", "What the larger radius gained"), _items(said), class_="limits")
    return Section(found.key, found.title, join(found.body, told))


def _sweep(material: Material) -> Section | None:
    rows = measurements(material.stages, sweep=True)
    note = "The same weights at other test resolutions; the radius stays as it is."
    return _charts("sweep", "Test resolution", sweep_charts(rows, material.styles), note)


def _tradeoff(material: Material) -> Section | None:
    note = "What robustness costs in clean accuracy: up and to the right is better."
    return _charts("tradeoff", "Clean against robust", tradeoff_charts(material.native, material.styles), note)


def _curves(material: Material) -> Section | None:
    note = "The probe is a quick measurement on held-out training images while training; it is no result."
    found = _charts("curves", "Training curves", curve_cards(material.stages, material.styles), note)
    noticed = troubles(material.stages)
    if found is None or not noticed:
        return found
    told = element("div", element("h3", "What training noticed"), _items(noticed), class_="limits")
    return Section(found.key, found.title, join(told, found.body))


def _charts(key: str, title: str, charts: Sequence[Markup], note: str) -> Section | None:
    if not charts:
        return None
    return Section(key, title, join(_paragraph(note), element("div", charts, class_="charts")))


def _gallery(material: Material) -> Section | None:
    shown = galleries(material.stages)
    note = _paragraph("Clean image, adversarial image, and their difference made visible.")
    return Section("gallery", "Gallery", join(note, shown)) if shown else None


def _paper(material: Material) -> Section:
    return Section("paper", "Against the paper", paper_body(material.rows, material.stages))


def _paragraph(*content: Content) -> Markup:
    return element("p", content, class_="note")
