"""A robust accuracy together with its conditions, read from the dictionaries that the evaluation wrote."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from components.report.data import ReportStage
from components.report.figures import NBSP, NOT_RECORDED, number, radius
from components.report.verdicts import Verdicts, verdicts_of

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

NORMS = ("Linf", "L2", "L1")
ATTACKS = ("AutoAttack", "APGD-CE+APGD-T", "APGD-CE")
"""Attacks from the strongest to the weakest; each is a part of the one before it."""

STEMS = {"patch": "PatchStem", "patchstem": "PatchStem", "conv": "ConvStem", "convstem": "ConvStem"}


@dataclass(frozen=True)
class Measurement:
    """One figure. Accuracies and interval bounds are fractions; `None` where the evaluation gave none.

    `kind` and `name` belong to the stage that trained the model, `source` and `source_kind` to the stage that
    measured it. `version` is the attack's library and variant; `notes` are reservations of the evaluation itself;
    `verdicts` are the images behind the figure, where the evaluation left them.
    """

    kind: str
    name: str
    model: str
    stem: str
    dataset: str
    resolution: int | None
    norm: str
    eps: float | None
    attack: str
    version: str
    n: int | None
    clean: float | None
    robust: float | None
    low: float | None
    high: float | None
    precision: str
    notes: tuple[str, ...] = ()
    source: str = ""
    source_kind: str = ""
    verdicts: Verdicts | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], conditions: Mapping[str, Any] | None = None, source: ReportStage | None = None
    ) -> Measurement:
        """A row of `results.json`; what the row does not say is looked up in its `details`, then in `conditions`."""
        places = [row, _mapping(row.get("details")), conditions or {}]
        bounds = row.get("interval")
        low, high = bounds if isinstance(bounds, Sequence) and len(bounds) == 2 else (None, None)
        return cls(
            kind=_text(row.get("stage")),
            name=_text(row.get("name") or row.get("stage")),
            model=_text(row.get("model")),
            stem=stem_title(row.get("stem")),
            dataset=_text(row.get("dataset")),
            resolution=_whole(row.get("resolution")),
            norm=_text(row.get("norm")),
            eps=number(row.get("eps")),
            attack=_text(row.get("attack")),
            version=_version(places),
            n=_whole(row.get("n")),
            clean=number(row.get("clean_accuracy")),
            robust=number(row.get("robust_accuracy")),
            low=number(low),
            high=number(high),
            precision=_first(places, "precision"),
            notes=_notes(_mapping(row.get("details"))),
            source=source.name if source else "",
            source_kind=source.kind if source else "",
            verdicts=verdicts_of(row, source) if source else None,
        )

    @property
    def threat(self) -> str:
        """Norm and radius: "Linf 4/255"."""
        return f"{self.norm} {radius(self.eps)}" if self.eps is not None else self.norm

    @property
    def under(self) -> tuple[str, int | None, str, float | None, str]:
        """What has to be equal for two figures to be compared: data, resolution, norm, radius, attack."""
        eps = None if self.eps is None else round(self.eps, 9)
        return self.dataset, self.resolution, self.norm, eps, self.attack

    @property
    def model_title(self) -> str:
        """Model and stem in one phrase: "convnext_micro, ConvStem"."""
        return ", ".join(word for word in (self.model, self.stem) if word != NOT_RECORDED) or NOT_RECORDED


def measurements(stages: Iterable[ReportStage], *, sweep: bool | None = None) -> list[Measurement]:
    """Every row of every stage, in the pipeline's order; `sweep` True or False keeps one sort of stage only."""
    return [
        Measurement.from_row(row, stage.conditions, stage)
        for stage in stages
        if sweep is None or (stage.kind == "sweep") == sweep
        for row in stage.rows
        if isinstance(row, Mapping)
    ]


def unions(stages: Iterable[ReportStage]) -> list[tuple[Measurement, str]]:
    """Worst cases over the norms, each with the words for the threats it is taken over."""
    found = []
    for stage in stages:
        for row in stage.union:
            if isinstance(row, Mapping):
                threats = threat_words(row.get("threats", row.get("norms")))
                joined = replace(Measurement.from_row(row, stage.conditions, stage), norm=threats, eps=None)
                found.append((joined, threats))
    return found


def threat_words(threats: object) -> str:
    """A list of threats (texts, or dictionaries with `norm` and `eps`) as one phrase."""
    if isinstance(threats, str) or not isinstance(threats, Iterable):
        return _text(threats)
    return " · ".join(_threat_word(threat) for threat in threats) or NOT_RECORDED


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items with equal keys together, groups and members in the order they came."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def norm_order(norm: str) -> int:
    """Position of a norm in tables; unknown ones come last."""
    return NORMS.index(norm) if norm in NORMS else len(NORMS)


def attack_order(attack: str) -> int:
    """Position of an attack, the strongest first; unknown ones come last."""
    return ATTACKS.index(attack) if attack in ATTACKS else len(ATTACKS)


def stem_title(stem: object) -> str:
    """The stem's proper name: "conv" is a ConvStem."""
    return STEMS.get(str(stem).lower(), _text(stem))


def _threat_word(threat: object) -> str:
    if isinstance(threat, Mapping):
        return f"{_text(threat.get('norm'))}{NBSP}{radius(number(threat.get('eps')))}"
    return str(threat)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return NOT_RECORDED if value is None or value == "" else str(value)


def _whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _first(places: Sequence[Mapping[str, Any]], *keys: str) -> str:
    found = (place[key] for place in places for key in keys if isinstance(place.get(key), str) and place[key])
    return next(found, NOT_RECORDED)


def _version(places: Sequence[Mapping[str, Any]]) -> str:
    """The library, and the variant where it is a whole one: "pyautoattack 0.2.0, standard"."""
    library, variant = _first(places, "attack_library"), _first(places, "attack_version")
    known = [word for word in (library, variant) if word != NOT_RECORDED and not word.startswith("parts")]
    return ", ".join(known) or NOT_RECORDED


def _notes(details: Mapping[str, Any]) -> tuple[str, ...]:
    """What the evaluation itself wants said: capped targets, the library's warnings, successes it could not verify."""
    warnings = details.get("warnings")
    notes = [str(details.get("targets_note") or "")]
    notes += [str(warning) for warning in warnings] if isinstance(warnings, list | tuple) else []
    unverified = number(details.get("unverified"))
    notes += [f"{unverified:g} adversarial images could not be verified"] if unverified else []
    return tuple(note for note in notes if note)
