"""The experiment's section: the question, every comparison on the same images, the frontier, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.report.charts import Styles
from components.report.data import ReportStage
from components.report.figures import NBSP, points
from components.report.frontier import Frontier, frontier_figure, frontier_words, frontiers
from components.report.markup import Content, Markup, element, join
from components.report.measurement import measurements
from components.report.pairs import Finding, Refused, compare_stages, percent_pair
from components.report.tables import Column, table

if TYPE_CHECKING:
    from components.report.config import ExperimentConfig


@dataclass(frozen=True)
class Experiment:
    """The answer to a question, as far as the images give one."""

    question: str
    findings: Sequence[Finding]
    refused: Sequence[Refused]
    frontiers: Sequence[Frontier]
    limits: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "question": self.question,
            "findings": [finding.plain() for finding in self.findings],
            "refused": [vars(one) for one in self.refused],
            "frontiers": [
                {"threat": one.rows[0].threat, "front": [row.name for row in one.front], "dominated": one.dominated}
                for one in self.frontiers
            ],
            "summary": summary(self),
        }


def examine(config: ExperimentConfig | None, stages: Sequence[ReportStage]) -> Experiment | None:
    """Works out every comparison that the configuration asks for; None where it asks for none.

    A stage that has left no verdicts is said to be missing, not passed over.
    """
    if config is None:
        return None
    known = {stage.name: stage for stage in stages if stage.verdicts}
    findings: list[Finding] = []
    refused: list[Refused] = []
    for first, second in config.compared:
        found = _compared(first, second, known)
        if isinstance(found, Refused):
            refused.append(found)
        else:
            findings += found
    drawn = [known[name] for name in config.frontier if name in known]
    return Experiment(config.question, findings, refused, frontiers(measurements(drawn)), config.limits)


def _compared(first: str, second: str, known: Mapping[str, ReportStage]) -> list[Finding] | Refused:
    missing = [name for name in (first, second) if name not in known]
    if missing:
        return Refused(first, second, f"not comparable: {', '.join(missing)} left no verdicts")
    return compare_stages(known[first], known[second])


def summary(found: Experiment) -> list[str]:
    """The outcome in a few sentences: every robust difference that is shown, how many are not, and dominated points."""
    robust = [one for one in found.findings if one.what != "clean"]
    said = [f"“{one.first}” against “{one.second}”, {one.what}: {one.shown}." for one in robust if one.difference.shows]
    hidden = len(robust) - len(said)
    if hidden:
        said.append(f"{hidden} of {len(robust)} comparisons under attack show no difference on so few images.")
    return said + [words for one in found.frontiers for words in frontier_words(one)]


def experiment_body(found: Experiment, styles: Styles) -> Markup:
    """What stands under the section's heading."""
    asked = element("p", found.question, class_="headline")
    outcome = element("ul", [element("li", words) for words in summary(found)])
    blocks: list[Content] = [asked, element("div", outcome, class_="limits")]
    if found.findings:
        blocks.append(_pairs_table(found.findings))
    blocks += [
        element("p", f"“{one.first}” against “{one.second}”: {one.why}.", class_="note") for one in found.refused
    ]
    if found.frontiers:
        charts = [frontier_figure(f"frontier-{i}", one, styles) for i, one in enumerate(found.frontiers)]
        blocks += [element("h3", "Clean against robust"), element("div", charts, class_="charts")]
    limits = element("ul", [element("li", words) for words in _limits(found)])
    blocks.append(element("div", element("h3", "What this experiment cannot show"), limits, class_="limits"))
    return join(blocks)


def _pairs_table(findings: Sequence[Finding]) -> Markup:
    columns = (
        Column("pair", "lead"),
        Column("under"),
        Column("first", "num"),
        Column("second", "num"),
        Column("difference", "num strong"),
        Column("95 % interval", "num"),
        Column("what it shows", "wide plain"),
        Column("what it cannot show", "wide plain"),
    )
    note = element(
        "p",
        f"Differences in points, first less second, on the same images; 95{NBSP}% intervals of the paired difference "
        "(Newcombe 1998). A difference is called shown when its interval leaves out 0 and the exact test of the images "
        f"on which the models disagree (McNemar) says so too, at 5{NBSP}%.",
        class_="note",
    )
    return join(note, table(columns, [_cells(one) for one in findings], "cards"))


def _cells(one: Finding) -> list[Content]:
    low, high = one.difference.interval
    clear = "clear" if one.difference.shows else "apart"
    return [
        [element("b", one.first), element("small", f"against {one.second}", class_="under")],
        [one.what, element("small", one.note, class_="under") if one.note else None],
        *percent_pair(one),
        points(one.difference.difference),
        f"{points(low)} to {points(high)}",
        element("span", one.shown, class_=clear),
        one.not_shown,
    ]


def _limits(found: Experiment) -> list[str]:
    said = ["Each model was trained once: the intervals speak for other images, not for another seed of the training."]
    if len(found.findings) > 1:
        expected = len(found.findings) / 20
        said.append(
            f"{len(found.findings)} comparisons at 95{NBSP}%: about {expected:.1f} of them would show a difference "
            "even if no two models differed."
        )
    if found.frontiers:
        said.append(
            "A point is called dominated by its measured shares; only the table above says what the images carry."
        )
    return [*said, found.limits] if found.limits else said
