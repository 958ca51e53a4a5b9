"""The `evaluate` and `sweep` stages: load model and images, attack, and save results, verdicts and a gallery.

A sweep measures at several test resolutions: the same weights, images, threats and radii; only the side changes. The
radii stay fixed, as in the paper (section on test-time resolution). For L2 and L1 that makes part of a gain geometric:
the same budget is spread over more pixels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.data.manifest import VAL_NAMES, DataManifest, read_manifest
from components.errors import UserError
from components.evaluate import images, results, spectra, work_units
from components.evaluate.attack import attack_module
from components.evaluate.config import EvaluateConfig, SweepConfig
from components.evaluate.executor import UnitExecutor, open_executor
from components.evaluate.image_list import image_list
from components.evaluate.images import ImageSet
from components.evaluate.outcomes import Outcome, implied_outcomes, join_units
from components.evaluate.results import Subject
from components.evaluate.work_units import Workload
from components.models.resolution import set_resolution
from components.models.weights import ModelCard, build_from_card, read_card, read_card_document
from components.result_rows import RESULTS, VERDICTS, EvaluationResults
from components.stage_records import SPECTRA

if TYPE_CHECKING:
    from components.store.execute import StageJob

GALLERY = "gallery"


def run(job: StageJob) -> dict[str, Any]:
    """Evaluates one model; artifacts `results/results.json`, `results/verdicts.json`, `gallery/`, and
    `results/spectra.json` if spectra are asked for.

    Raises:
        UserError: threats that cannot be measured on this model and data, damaged inputs, or a process that died.
    """
    config = _config(job.spec.config)
    card = read_card(job.inputs["model"].path("model"))
    sides = possible_resolutions(config, card)
    # Processes first: they are forked, and a fork is only cheap and safe before anything has been computed.
    with open_executor(config, len(sides)) as executor:
        return _evaluate(job, config, sides, executor)


def _config(fields: dict[str, Any]) -> EvaluateConfig:
    """The configuration as its fields show it: only a sweep has `resolutions`."""
    return (SweepConfig if "resolutions" in fields else EvaluateConfig).model_validate(fields)


def possible_resolutions(config: EvaluateConfig, card: ModelCard) -> tuple[int, ...]:
    """The image sides to evaluate at, in px, after a check that every threat can be measured at each of them.

    Raises:
        UserError: a side that the network cannot take, a threat that the attack cannot measure there, or too few
            classes for a threat.
    """
    sides = config.resolutions_or(card.resolution)
    model = build_from_card(card, device="meta")
    for side in sides:
        set_resolution(model, side)
        for threat in config.threats:
            attack_module(threat.attack).refuse_impossible(threat, num_classes=card.num_classes, resolution=side)
    return sides


def _evaluate(job: StageJob, config: EvaluateConfig, sides: tuple[int, ...], executor: UnitExecutor) -> dict[str, Any]:
    start = time.monotonic()
    manifest = read_manifest(job.inputs["data"].path("manifest.json"))
    subject = _subject(job, manifest)
    job.run.progress(phase="reading images", done=0, total=config.num_images)
    indices, title = _choice(job, config, manifest)
    chosen = images.load(
        manifest,
        config.split,
        job.objects,
        indices=indices,
        title=title,
        resolutions=sides,
        crop_ratio=subject.card.crop_ratio,
    )
    outcomes = _attack(job, config, subject, chosen, sides, executor)
    document = EvaluationResults(
        rows=tuple(results.result_row(subject, o, config, chosen) for o in [*outcomes, *implied_outcomes(outcomes)]),
        union=tuple(results.worst_case_rows(subject, outcomes, chosen.title)),
        conditions=results.conditions(subject, config, chosen, sides, executor.device),
    )
    _save(job, "results.json", RESULTS, document.model_dump(mode="json"))
    _save(job, "verdicts.json", VERDICTS, results.verdicts(chosen, outcomes).model_dump(mode="json"))
    if config.gallery:
        results.write(job.run.workdir / GALLERY, outcomes, chosen, subject.classes, config.gallery)
        job.run.save(job.run.workdir / GALLERY, GALLERY)
    if config.spectra:
        job.run.progress(phase="measuring spectra", done=0, total=chosen.n)
        _save(job, "spectra.json", SPECTRA, spectra.measure(job.inputs["model"].path("model"), chosen, config))
    job.run.log_metrics(_metrics(outcomes))
    return _summary(document, round(time.monotonic() - start, 1))


def _choice(job: StageJob, config: EvaluateConfig, manifest: DataManifest) -> tuple[npt.NDArray[np.int64], str]:
    """Returns the rows of the split to evaluate on, and what rows of results call them."""
    listed = image_list(config)
    if listed is None:
        total = manifest.split(config.split).num_images
        return images.choose(total, config.num_images, config.seed), f"drawn with seed {config.seed}"
    known = json.loads(job.inputs["data"].path(VAL_NAMES).read_text(encoding="utf-8"))
    return np.array(listed.rows(known, config.num_images), np.int64), listed.title


def _attack(
    job: StageJob,
    config: EvaluateConfig,
    subject: Subject,
    chosen: ImageSet,
    sides: tuple[int, ...],
    executor: UnitExecutor,
) -> list[Outcome]:
    work = Workload(
        threats=config.threats,
        units=work_units.cut(config.threats, sides, chosen.n, config.batch_size),
        num_classes=subject.card.num_classes,
        seed=config.seed,
        keep=config.gallery,
        model_sha256=subject.model_sha256,
        data_sha256=chosen.data_digest,
    )
    folder = job.run.workdir / "attack"
    work_units.write(folder, work, chosen.pixels, chosen.labels)
    job.run.log_params(
        {
            "images_digest": chosen.digest,
            "images": chosen.n,
            "image_set": chosen.title,
            "device": executor.device,
            "jpeg_decoder": chosen.jpeg_decoder,
        }
    )
    return join_units(
        work, executor.run(folder, job.inputs["model"].path("model"), work, EvaluationProgress(job, work))
    )


def _subject(job: StageJob, manifest: DataManifest) -> Subject:
    trained = job.inputs["model"]
    folder = trained.path("model")
    card = read_card(folder)
    if card.num_classes != manifest.num_classes or (card.classes and card.classes != manifest.classes):
        raise UserError(
            f"the model of {trained.name!r} has {card.num_classes} classes and the data set {manifest.name!r} has "
            f"{manifest.num_classes}, or their names differ",
            where=f"{job.spec.name}.data",
            remedy="evaluate the model on the data set it was trained on",
        )
    weights = read_card_document(folder)["weights"]
    return Subject(
        kind=trained.kind,
        stage=trained.name,
        card=card,
        model_sha256=weights["sha256"],
        dataset=manifest.name,
        classes=manifest.classes,
        run_id=trained.run_id,
    )


class EvaluationProgress:
    """Turns the progress of units into the stage's progress, counted in images."""

    def __init__(self, job: StageJob, work: Workload) -> None:
        self._job, self._work = job, work
        self._shares = [0.0] * len(work.units)
        self._total = sum(unit.size for unit in work.units)

    def __call__(self, number: int, part: str, share: float) -> None:
        """Reports the finished share of unit `number`, and the running part of its attack."""
        unit = self._work.units[number]
        note = " ".join(word for word in (self._work.threats[unit.threat].title, part) if word)
        self._shares[number] = share
        done = sum(s * u.size for s, u in zip(self._shares, self._work.units))
        self._job.run.progress(phase="attacking", done=int(done + 1e-9), total=self._total, note=note)


def _save(job: StageJob, name: str, artifact: str, document: dict[str, Any]) -> None:
    path: Path = job.run.workdir / name
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    job.run.save(path, artifact)


def _metrics(outcomes: list[Outcome]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for outcome in outcomes:
        key = f"{outcome.threat.title} {outcome.resolution}px".replace("+", " ")
        metrics[f"robust_accuracy/{key}"] = float(outcome.robust.mean())
        metrics[f"clean_accuracy/{outcome.resolution}px"] = float(outcome.correct.mean())
        metrics[f"seconds/{key}"] = outcome.seconds
    return metrics


def _summary(document: EvaluationResults, seconds: float) -> dict[str, Any]:
    keys = {"resolution", "norm", "eps", "attack", "n", "clean_accuracy", "robust_accuracy", "interval"}
    worst = [row.robust_accuracy for row in document.union]
    return {
        "clean_accuracy": document.rows[0].clean_accuracy,
        "rows": [row.model_dump(mode="json", include=keys) for row in document.rows],
        "union_robust_accuracy": worst[0] if worst else None,
        "images_digest": document.conditions.images_digest,
        "seconds": seconds,
    }
