"""The `report` stage: reads what every stage before it left in MLflow, and writes one HTML page.

If the configuration asks a question, its answer is also saved as `experiment.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.files import write_json
from components.report.config import ReportConfig
from components.report.data import ReportStage
from components.report.experiment import examine
from components.report.page import build_report
from components.result_rows import RESULTS, VERDICTS, read_results, read_verdicts
from components.stage_records import GALLERY_INDEX, HISTORY, SPECTRA, GalleryEntry, history_entries, read_gallery
from components.store.execute import StageJob
from components.store.run import StageInput

PAGE, EXPERIMENT = "report.html", "experiment.json"

_PICTURES = ("clean", "adversarial", "difference")
_REFERENCES = ("model", "data", "init", "evaluation")
"""Fields of a stage's configuration that may hold another stage's name."""


def run(job: StageJob) -> dict[str, Any]:
    """Writes the page from the finished parents of this stage.

    Raises:
        UserError: a parent left results in a form that this version does not read, or the page cannot be written.
    """
    recipe = _recipe(job)
    stages = [read_stage(parent, job.spec.pipeline_run, recipe) for parent in job.inputs.values()]
    experiment = examine(ReportConfig.model_validate(job.spec.config).experiment, stages)
    page = build_report(recipe, stages, job.run.workdir / PAGE, experiment=experiment)
    job.run.save(page, PAGE)
    if experiment is not None:
        job.run.save(write_json(job.run.workdir / EXPERIMENT, experiment.plain()), EXPERIMENT)
    figures = sum(len(stage.rows) for stage in stages)
    return {"stages": len(stages), "figures": figures, "bytes": page.stat().st_size}


def read_stage(stage: StageInput, pipeline_run: str, recipe: Mapping[str, Any]) -> ReportStage:
    """Reads one finished stage with its history, results and gallery.

    A reused stage carries the stage names of the recipe that ran it first, because names are no part of a fingerprint.
    The page shows the names of the recipe at hand.

    Args:
        stage: a parent of the report.
        pipeline_run: the run of the report, which tells stages that ran from reused ones.
        recipe: the resolved recipe, `stages` by name; may be empty.

    Raises:
        UserError: its results have a form that this version does not read.
    """
    read = stage.artifacts.read_json
    results, verdicts, spec = read(RESULTS), read(VERDICTS), read("spec.json") or {}
    evaluation = (
        read_results(results, where=stage.name).with_stage_name(model_name(stage.name, recipe)) if results else None
    )
    return ReportStage(
        name=stage.name,
        kind=stage.kind,
        run_id=stage.run_id,
        fingerprint=stage.fingerprint,
        state="ran" if spec.get("pipeline_run") == pipeline_run else "reused",
        config=with_recipe_names(stage.name, stage.config, recipe),
        result=stage.result,
        history=history_entries(read(HISTORY)),
        rows=evaluation.rows if evaluation else (),
        worst_cases=evaluation.union if evaluation else (),
        conditions=evaluation.conditions if evaluation else None,
        gallery=_gallery(stage),
        verdicts=read_verdicts(verdicts, where=stage.name) if verdicts else None,
        spectra=read(SPECTRA) or {},
        data=str(spec.get("parents", {}).get("data", {}).get("fingerprint", "")),
    )


def with_recipe_names(stage: str, config: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a stage with its references to other stages as the recipe writes them."""
    entry = (recipe.get("stages") or {}).get(stage) or {}
    return {**config, **{key: entry[key] for key in _REFERENCES if entry.get(key) is not None}}


def model_name(stage: str, recipe: Mapping[str, Any]) -> str:
    """The training stage whose model the recipe's stage `stage` measures; empty if the recipe does not say."""
    entry = (recipe.get("stages") or {}).get(stage) or {}
    return entry["model"] if isinstance(entry.get("model"), str) else ""


def _gallery(stage: StageInput) -> list[GalleryEntry]:
    """Gallery entries with the paths of their pictures made absolute and verified."""
    if not stage.has("gallery"):
        return []
    folder = stage.path("gallery")
    entries = read_gallery(stage.artifacts.read_json(GALLERY_INDEX), where=stage.name)
    return [
        entry.model_copy(update={name: str(folder / getattr(entry, name)) for name in _PICTURES}) for entry in entries
    ]


def _recipe(job: StageJob) -> dict[str, Any]:
    """The resolved recipe of the pipeline run, under the report's own title if it has one."""
    recipe = job.run.pipeline_recipe() or {"name": "robustrain", "seed": job.spec.seed}
    title = job.spec.config.get("title")
    return {**recipe, "name": title} if title else recipe
