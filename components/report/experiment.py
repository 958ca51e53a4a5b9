"""The answer to an experiment's question: paired comparisons on the same images, and the frontier of accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.report.compare import NotComparable, PairedResult, compare_stages
from components.report.data import Measurement, ReportStage, grouped, measurements
from components.wording import NBSP

if TYPE_CHECKING:
    from components.report.config import ExperimentConfig


@dataclass(frozen=True)
class Experiment:
    """The answer to a question, as far as the images give one.

    Attributes:
        findings: every comparison that was asked for and could be made, threat by threat.
        refused: those that could not be made.
        frontiers: one for each condition, see `Frontier`.
        limits: what the experiment cannot show, in its author's words.
    """

    question: str
    findings: Sequence[PairedResult]
    refused: Sequence[NotComparable]
    frontiers: Sequence[Frontier]
    limits: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "question": self.question,
            "findings": [finding.plain() for finding in self.findings],
            "refused": [vars(one) for one in self.refused],
            "frontiers": [
                {"threat": one.rows[0].row.threat, "front": one.names, "dominated": one.dominated}
                for one in self.frontiers
            ],
            "summary": summary(self),
        }


@dataclass(frozen=True)
class Frontier:
    """The models measured under one condition, by clean and robust accuracy.

    Attributes:
        rows: all of them, from the lowest clean accuracy to the highest.
        dominated: name of a model -> models that are at least as good in both accuracies and better in one.
    """

    rows: Sequence[Measurement]
    dominated: Mapping[str, Sequence[str]]

    @property
    def front(self) -> list[Measurement]:
        """The models that no other model dominates, from the lowest clean accuracy to the highest."""
        return [one for one in self.rows if one.stage not in self.dominated]

    @property
    def names(self) -> list[str]:
        """Names of the models that no other model dominates."""
        return [one.stage for one in self.front]


def examine(config: ExperimentConfig | None, stages: Sequence[ReportStage]) -> Experiment | None:
    """Works out every comparison that the configuration asks for; None if there is no experiment.

    A stage that left no verdicts is reported as missing.
    """
    if config is None:
        return None
    known = {stage.name: stage for stage in stages if stage.verdicts}
    findings: list[PairedResult] = []
    refused: list[NotComparable] = []
    for first, second in config.compared:
        found = _compared(first, second, known)
        if isinstance(found, NotComparable):
            refused.append(found)
        else:
            findings += found
    drawn = [known[name] for name in config.frontier if name in known]
    return Experiment(config.question, findings, refused, frontiers(measurements(drawn)), config.limits)


def _compared(first: str, second: str, known: Mapping[str, ReportStage]) -> list[PairedResult] | NotComparable:
    missing = [name for name in (first, second) if name not in known]
    if missing:
        return NotComparable(first, second, f"not comparable: {', '.join(missing)} left no verdicts")
    return compare_stages(known[first], known[second])


def frontiers(rows: Sequence[Measurement]) -> list[Frontier]:
    """One frontier for each condition under which two models or more were measured."""
    groups = grouped(rows, lambda one: one.setting).values()
    return [frontier(some) for some in groups if len({one.stage for one in some}) > 1]


def frontier(rows: Sequence[Measurement]) -> Frontier:
    """Divides the models measured under one condition into those on the frontier and dominated ones.

    Equal points do not dominate each other. The measured shares are compared. The paired differences tell which of
    these differences the images show.
    """
    ordered = sorted(rows, key=_accuracies)
    beaten = {one.stage: [other.stage for other in ordered if _dominates(other, one)] for one in ordered}
    return Frontier(ordered, {name: others for name, others in beaten.items() if others})


def _accuracies(one: Measurement) -> tuple[float, float]:
    return one.row.clean_accuracy, one.row.robust_accuracy


def _dominates(one: Measurement, other: Measurement) -> bool:
    ours, theirs = _accuracies(one), _accuracies(other)
    return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]


def summary(found: Experiment) -> list[str]:
    """The outcome in sentences: every robust difference that is shown, the number that is not, and the frontiers."""
    robust = [one for one in found.findings if one.what != "clean"]
    shown = [one for one in robust if one.difference.shows]
    sentences = [f"“{one.first}” against “{one.second}”, {one.what}: {one.shown}." for one in shown]
    if hidden := len(robust) - len(shown):
        sentences.append(
            f"{hidden} of {len(robust)} comparisons under attack show no difference with this number of images."
        )
    return sentences + [words for one in found.frontiers for words in frontier_sentences(one)]


def frontier_sentences(found: Frontier) -> list[str]:
    """One sentence that names the frontier, and one for each dominated model."""
    sentences = [f"On the frontier, not dominated by any model: {_quoted(found.names)}."]
    for name, others in found.dominated.items():
        sentences.append(
            f"Dominated: “{name}”, by {_quoted(others)} (at least as good in both accuracies, better in one)."
        )
    return sentences if found.dominated else [*sentences, "No model is dominated."]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)


def experiment_limits(found: Experiment) -> list[str]:
    """What the experiment cannot show, in sentences."""
    sentences = ["Each model was trained once: the intervals hold for other images, not for another training seed."]
    if len(found.findings) > 1:
        expected = len(found.findings) / 20
        sentences.append(
            f"{len(found.findings)} comparisons at 95{NBSP}%: about {expected:.1f} of them would show a difference "
            "even if all models were equal."
        )
    if found.frontiers:
        sentences.append(
            "Dominated means dominated in the measured accuracies; the table above says which differences the images "
            "show."
        )
    return [*sentences, found.limits] if found.limits else sentences
