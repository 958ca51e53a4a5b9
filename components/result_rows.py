"""Typed rows of an evaluation's `results.json` and `verdicts.json`.

They are written by `components.evaluate` and read by report, promotion, model card and `robustrain results`. Key names
are defined here and nowhere else. Accuracies are fractions, intervals are [low, high] at 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import UserError
from components.threats import ATTACKS, Attack, attack_titled, radius_text, same_radius, threat_text

RESULTS, VERDICTS = "results/results.json", "results/verdicts.json"
"""Artifact paths of the documents."""

ROBUST, WRONG = "robust", "wrong"
"""Words of an image's verdict: robust under the attack, misclassified without one; else the part that broke it."""

Interval = tuple[float, float]
"""(low, high)."""

STEM_TITLES = {"patch": "PatchStem", "conv": "ConvStem"}
"""Value of `stem` -> the stem's name in tables."""


class Row(BaseModel):
    """Base of all rows: unknown keys, missing keys and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PartRow(Row):
    """One part of an attack: images that it was given, images that it broke, seconds, summed over the batches."""

    attack: str
    images: int
    broken: int
    seconds: float


class RowDetails(Row):
    """The further conditions of one result.

    Attributes:
        attack_library, attack_version: library with its version; `standard` or `parts of standard`.
        targets: number of target classes of each targeted part; `targets_note` is a sentence if they were capped.
        seed, batch_size: of the attack.
        split, images_digest: which images; equal digests, equal images.
        clean_interval: of the clean accuracy.
        unverified: broken images whose adversarial image failed the second check; they count as broken.
        narrow_margins: broken images with a logit gap below 1e-5.
        largest_distance: largest norm of a perturbation.
        resolution_note: a sentence if most images are enlarged for the row's resolution, because they are stored
            smaller.
        warnings: of the attack's library, on this model.
    """

    attack_library: str
    attack_version: str
    targets: dict[str, int] = Field(default_factory=dict)
    targets_note: str = ""
    seed: int
    batch_size: int
    precision: str
    split: str
    images_digest: str
    interval_method: str
    clean_interval: Interval
    parts: tuple[PartRow, ...] = ()
    seconds: float = 0.0
    unverified: int = 0
    narrow_margins: int = 0
    largest_distance: float = 0.0
    resolution_note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The attack's library, and its variant if it is a complete one: `pyautoattack 0.2.0, standard`."""
        partial = self.attack_version.startswith("parts")
        return self.attack_library if partial else f"{self.attack_library}, {self.attack_version}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Reservations of the evaluation itself: capped targets, enlarged images, warnings, unverified images."""
        unverified = (f"{self.unverified} adversarial images could not be verified",) if self.unverified else ()
        return tuple(note for note in (self.targets_note, self.resolution_note, *self.warnings, *unverified) if note)


class _Measured(Row):
    """What a result and a worst case have in common.

    Attributes:
        kind, stage: kind and name of the training stage whose model was measured.
        model, stem: the network and its stem (`conv` or `patch`).
        resolution: side of the images in px.
        n: number of images.
        image_set: which images: `drawn with seed 0`, `RobustBench`, or a list's file name and the start of its sha256.
    """

    kind: str
    stage: str
    model: str
    stem: str
    dataset: str
    resolution: int
    image_set: str = ""

    @property
    def stem_title(self) -> str:
        """The stem's name in tables: `ConvStem`."""
        return STEM_TITLES.get(self.stem, self.stem)

    @property
    def data_title(self) -> str:
        """Data set and resolution, and the list of the images if they were not drawn: `imagenet 224, RobustBench`."""
        listed = "" if self.image_set.startswith("drawn") else self.image_set
        return f"{self.dataset} {self.resolution}" + (f", {listed}" if listed else "")

    @property
    def model_title(self) -> str:
        """Network and stem: `convnext_micro, ConvStem`."""
        return f"{self.model}, {self.stem_title}"


class ResultRow(_Measured):
    """One robust accuracy with its conditions: a row of `results.json` and of `robustrain results --json`.

    Attributes:
        attack: the attack's title.
        interval: of the robust accuracy.
        stored_side: median of the images' shorter sides in the encoded set, in px.
    """

    norm: str
    eps: float
    attack: str
    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: Interval
    stored_side: int | None = None
    details: RowDetails

    @property
    def threat(self) -> str:
        """Norm and radius: `Linf 4/255`."""
        return threat_text(self.norm, self.eps)

    def plain(self) -> dict[str, Any]:
        """The documented fields for JSON, without `details`."""
        return self.model_dump(mode="json", exclude={"details"})


class RowThreat(Row):
    """One threat of a worst case; `attack` is the attack's title."""

    norm: str
    eps: float
    attack: str

    @property
    def threat(self) -> str:
        """Norm and radius: `Linf 4/255`."""
        return threat_text(self.norm, self.eps)


class WorstCaseRow(_Measured):
    """The worst case over several threats, image by image: an image counts only if it is robust under all of them.

    Attributes:
        norms, threats: what the worst case is taken over.
        attack: titles of the attacks, joined by " / ".
        n: number of images common to all threats.
    """

    norms: tuple[str, ...]
    threats: tuple[RowThreat, ...]
    attack: str
    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: Interval


class Conditions(Row):
    """What holds for every result of one evaluation; results under other conditions must not be compared.

    Attributes:
        images: which images, as a sentence.
        stored_side: median of their shorter sides in the encoded set, in px.
        radii, interval: notes on the radii and on the method of the intervals.
        model_run, model_sha256: the MLflow run and the weights that were measured.
    """

    attack_library: str
    torch: str
    device: str
    precision: str
    seed: int
    batch_size: int
    split: str
    n: int
    images: str
    images_digest: str
    stored_side: int | None = None
    resolutions: tuple[int, ...]
    crop_ratio: float
    radii: str
    interval: str
    dataset: str
    classes: int
    model_run: str
    model_sha256: str


class EvaluationResults(Row):
    """`results.json`: the results of one `evaluate` or `sweep` stage, and the worst cases over its norms."""

    rows: tuple[ResultRow, ...]
    union: tuple[WorstCaseRow, ...] = ()
    conditions: Conditions

    def with_stage_name(self, stage: str) -> EvaluationResults:
        """The same results under another name of the training stage; unchanged for an empty name.

        A reused evaluation carries the names of the recipe that ran it first; the recipe at hand may have another one.
        """
        if not stage:
            return self
        rows = tuple(row.model_copy(update={"stage": stage}) for row in self.rows)
        union = tuple(row.model_copy(update={"stage": stage}) for row in self.union)
        return self.model_copy(update={"rows": rows, "union": union})


class VerdictThreat(Row):
    """One threat of `verdicts.json`: `attack` is the attack's key, `n` the number of images (the first ones)."""

    norm: str
    eps: float
    attack: str
    title: str
    n: int


class ImageVerdicts(Row):
    """One image: its row in the encoded split, its label, and one entry a threat in the three lists.

    Entries are None for a threat that was measured on fewer images. Distances are norms of the perturbation.
    """

    index: int
    label: int
    clean_prediction: int
    verdicts: tuple[str | None, ...]
    predictions: tuple[int | None, ...]
    distances: tuple[float | None, ...]

    @property
    def identity(self) -> tuple[int, int]:
        """(row in the data set, label): equal for the same image of the same data set."""
        return self.index, self.label


class ResolutionVerdicts(Row):
    """The verdicts at one resolution in px."""

    resolution: int
    threats: tuple[VerdictThreat, ...]
    images: tuple[ImageVerdicts, ...]

    @property
    def identities(self) -> list[tuple[int, int]]:
        """(row in the data set, label) of every image."""
        return [image.identity for image in self.images]

    @property
    def clean(self) -> list[bool]:
        """Whether each image is classified correctly without an attack."""
        return [image.clean_prediction == image.label for image in self.images]

    def robust(self, norm: str, eps: float, attack: str) -> RobustImages | None:
        """The verdicts of one threat; None if this evaluation has none for it.

        Args:
            attack: title of the attack. Verdicts of a shorter attack are read off a longer one that implies it.
        """
        wanted = attack_titled(attack)
        if wanted is None:
            return None
        for measured in (wanted, *(other for other in ATTACKS.values() if wanted.key in other.implies)):
            for position, threat in enumerate(self.threats):
                if (threat.norm, threat.attack) == (norm, measured.key) and same_radius(threat.eps, eps):
                    return self._robust(position, _words_of_robust(wanted, measured))
        return None

    def _robust(self, position: int, words: frozenset[str]) -> RobustImages:
        # A threat with an n of its own took the first images; the others have no verdict for it.
        seen = [image for image in self.images if image.verdicts[position] is not None]
        return RobustImages([image.identity for image in seen], [image.verdicts[position] in words for image in seen])


class RobustImages(NamedTuple):
    """The images behind one robust accuracy, in the order of the evaluation.

    Attributes:
        images: (row in the data set, label) of every image.
        robust: whether it is classified correctly under the attack.
    """

    images: Sequence[tuple[int, int]]
    robust: Sequence[bool]


def _words_of_robust(wanted: Attack, measured: Attack) -> frozenset[str]:
    """Verdicts that mean robust under `wanted`: an image that only later parts broke is one that it leaves robust."""
    return frozenset({ROBUST, *(part.title for part in measured.parts if part not in wanted.parts)})


class Verdicts(Row):
    """`verdicts.json`: every image's verdict under every threat, at every resolution."""

    verdicts: str = "robust; wrong: misclassified without an attack; else the part of the attack that broke it"
    resolutions: tuple[ResolutionVerdicts, ...]

    def at(self, resolution: int | None) -> ResolutionVerdicts | None:
        """The verdicts at one resolution; None if it was not measured."""
        return next((group for group in self.resolutions if group.resolution == resolution), None)

    def robust(self, row: ResultRow) -> RobustImages | None:
        """The images behind one result; None if this evaluation has none for it."""
        group = self.at(row.resolution)
        return group.robust(row.norm, row.eps, row.attack) if group else None


_Document = TypeVar("_Document", bound=BaseModel)


def read_results(document: object, *, where: str) -> EvaluationResults:
    """Reads `results.json`.

    Args:
        document: the parsed JSON.
        where: the stage it is from, for the message.

    Raises:
        UserError: it is not such a document, or was written by another version of Robustrain.
    """
    return read_document(EvaluationResults, document, where=where)


def read_verdicts(document: object, *, where: str) -> Verdicts:
    """Reads `verdicts.json`; the one reader of verdicts.

    Args:
        document: the parsed JSON.
        where: the stage it is from, for the message.

    Raises:
        UserError: it is not such a document, or was written by another version of Robustrain.
    """
    return read_document(Verdicts, document, where=where)


def read_document(kind: type[_Document], document: object, *, where: str) -> _Document:
    """Reads a document of one kind; `where` names the stage that wrote it.

    Raises:
        UserError: it is not such a document, or was written by another version of Robustrain.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        what = f"{kind.__name__} has a form that this version does not read ({field}: {first['msg']})"
        raise UserError(what, where=where, remedy=f"run the stage again with --again {where}") from error


def strongest(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """One row for each model, data set, resolution, norm and radius: by the strongest attack, then on most images.

    A sweep measures the training resolution too, with a cheaper attack than the evaluation's. That robust accuracy is
    an upper bound of the same quantity and adds nothing beside it.
    """
    kept: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        key = (row.stage, row.dataset, row.resolution, row.norm, radius_text(row.eps))
        if key not in kept or _strength(row) > _strength(kept[key]):
            kept[key] = row
    return list(kept.values())


def _strength(row: ResultRow) -> tuple[int, int]:
    attack = attack_titled(row.attack)
    return attack.strength if attack else -1, row.n
