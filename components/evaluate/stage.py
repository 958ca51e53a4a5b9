"""The `evaluate` and `sweep` stages: load model and images, attack, and leave figures, verdicts and a gallery."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.manifest import DataManifest, read_manifest
from components.errors import UserError
from components.evaluate import gallery, images, results, spectra, sweep, workload
from components.evaluate.config import EvaluateConfig, SweepConfig
from components.evaluate.outcomes import Outcome, gather
from components.evaluate.results import Subject
from components.evaluate.shards import Shards, opened
from components.evaluate.short_form import short_forms
from components.evaluate.workload import Workload
from components.models.weights import read_card, read_card_document

if TYPE_CHECKING:
    from components.store.execute import StageJob

RESULTS, VERDICTS, GALLERY = "results/results.json", "results/verdicts.json", "gallery"
SPECTRA = "results/spectra.json"


def run(job: StageJob) -> dict[str, Any]:
    """Evaluates one model; artifacts `results/results.json`, `results/verdicts.json`, `gallery/`, and
    `results/spectra.json` where spectra are asked for.

    Raises:
        UserError: threats that cannot be measured on this model and data, damaged inputs, or a process that died.
    """
    config_type = SweepConfig if job.spec.kind == "sweep" else EvaluateConfig
    config = config_type.model_validate(job.spec.config)
    card = read_card(job.inputs["model"].path("model"))
    sides = sweep.resolutions(config, card)
    # Processes first: they are forked, and a fork is only cheap and safe before anything has been computed.
    with opened(config, len(sides)) as shards:
        return _evaluate(job, config, sides, shards)


def _evaluate(job: StageJob, config: EvaluateConfig, sides: tuple[int, ...], shards: Shards) -> dict[str, Any]:
    start = time.monotonic()
    manifest = read_manifest(job.inputs["data"].path("manifest.json"))
    subject = _subject(job, manifest)
    job.run.progress(phase="reading images", done=0, total=config.n)
    chosen = images.load(
        manifest,
        config.split,
        job.objects,
        n=config.n,
        seed=config.seed,
        resolutions=sides,
        crop_ratio=subject.card.crop_ratio,
    )
    work = Workload(
        threats=config.threats,
        units=workload.cut(config.threats, sides, chosen.n, config.batch_size),
        num_classes=subject.card.num_classes,
        seed=config.seed,
        keep=config.gallery,
        model_sha256=subject.model_sha256,
        data_sha256=chosen.data_digest,
    )
    folder = job.run.workdir / "attack"
    workload.write(folder, work, chosen.pixels, chosen.labels)
    job.run.log_params(
        {
            "images_digest": chosen.digest,
            "images": chosen.n,
            "device": shards.device,
            "jpeg_decoder": chosen.jpeg_decoder,
        }
    )
    found = shards.run(folder, job.inputs["model"].path("model"), work, Board(job, work))
    outcomes = gather(work, found)
    document = {
        "rows": [results.row(subject, o, config, chosen) for o in [*outcomes, *short_forms(outcomes)]],
        "union": results.union_rows(subject, outcomes),
        "conditions": results.conditions(subject, config, chosen, sides, shards.device),
    }
    _save(job, "results.json", RESULTS, document)
    _save(job, "verdicts.json", VERDICTS, results.verdicts(chosen, outcomes))
    if config.gallery:
        gallery.write(job.run.workdir / GALLERY, outcomes, chosen, subject.classes, config.gallery)
        job.run.save(job.run.workdir / GALLERY, GALLERY)
    if config.spectra:
        job.run.progress(phase="measuring spectra", done=0, total=chosen.n)
        _save(job, "spectra.json", SPECTRA, spectra.measure(job.inputs["model"].path("model"), chosen, config))
    job.run.log_metrics(_metrics(outcomes))
    return _summary(document, round(time.monotonic() - start, 1))


def _subject(job: StageJob, manifest: DataManifest) -> Subject:
    trained = job.inputs["model"]
    folder = trained.path("model")
    card = read_card(folder)
    if card.num_classes != manifest.num_classes or (card.classes and card.classes != manifest.classes):
        raise UserError(
            f"the model of {trained.name!r} knows {card.num_classes} classes and the data set {manifest.name!r} has "
            f"{manifest.num_classes}, or they have other names",
            where=f"{job.spec.name}.data",
            remedy="evaluate the model on the data set it was trained on",
        )
    weights = read_card_document(folder)["weights"]
    return Subject(
        stage=trained.kind,
        name=trained.name,
        card=card,
        model_sha256=weights["sha256"],
        dataset=manifest.name,
        classes=manifest.classes,
        run_id=trained.run_id,
    )


class Board:
    """Turns what the processes report into the stage's progress, counted in images."""

    def __init__(self, job: StageJob, work: Workload) -> None:
        self._job, self._work, self._lock = job, work, threading.Lock()
        self._shares = [0.0] * len(work.units)
        self._total = sum(unit.size for unit in work.units)

    def __call__(self, number: int, attack: str, share: float) -> None:
        """Unit `number` is done to `share`, with `attack` at work."""
        unit = self._work.units[number]
        note = " ".join(word for word in (self._work.threats[unit.threat].title, attack) if word)
        with self._lock:
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
        metrics[f"clean_accuracy/{outcome.resolution}px"] = float(outcome.right.mean())
        metrics[f"seconds/{key}"] = outcome.seconds
    return metrics


def _summary(document: dict[str, Any], seconds: float) -> dict[str, Any]:
    keys = ("resolution", "norm", "eps", "attack", "n", "clean_accuracy", "robust_accuracy", "interval")
    rows = [{key: row[key] for key in keys} for row in document["rows"]]
    worst = [row["robust_accuracy"] for row in document["union"]]
    return {
        "clean_accuracy": rows[0]["clean_accuracy"],
        "rows": rows,
        "union_robust_accuracy": worst[0] if worst else None,
        "images_digest": document["conditions"]["images_digest"],
        "seconds": seconds,
    }
