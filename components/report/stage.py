"""The report as a stage: reads what every stage before it left in MLflow, and leaves one HTML page.

Where it was asked a question, the answer lies beside the page as `experiment.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.report.config import ReportConfig
from components.report.data import ReportStage
from components.report.experiment import examine
from components.report.named import config_here, rows_here
from components.report.page import build_report
from components.store.digests import write_json
from components.store.job import StageJob
from components.store.run import StageInput

PAGE, EXPERIMENT = "report.html", "experiment.json"


def run(job: StageJob) -> dict[str, Any]:
    """Builds the page from the finished parents of this stage."""
    recipe = _recipe(job)
    stages = [gather(parent, job.spec.pipeline_run, recipe) for parent in job.inputs.values()]
    experiment = examine(ReportConfig.model_validate(job.spec.config).experiment, stages)
    page = build_report(recipe, stages, job.run.workdir / PAGE, experiment=experiment)
    job.run.save(page, PAGE)
    if experiment is not None:
        job.run.save(write_json(job.run.workdir / EXPERIMENT, experiment.plain()), EXPERIMENT)
    figures = sum(len(stage.rows) for stage in stages)
    return {"stages": len(stages), "figures": figures, "bytes": page.stat().st_size}


def gather(stage: StageInput, pipeline_run: str, recipe: Mapping[str, Any]) -> ReportStage:
    """One finished stage with its history, figures and gallery, under the names that the recipe gives."""
    read = stage.artifacts.read_json
    results = read("results/results.json") or {}
    return ReportStage(
        name=stage.name,
        kind=stage.kind,
        run_id=stage.run_id,
        fingerprint=stage.fingerprint,
        state=_state(stage, pipeline_run),
        config=config_here(stage.name, stage.config, recipe),
        result=stage.result,
        history=read("history.json") or [],
        rows=rows_here(stage.name, results.get("rows", []), recipe),
        union=rows_here(stage.name, results.get("union", []), recipe),
        conditions=results.get("conditions", {}),
        gallery=_gallery(stage),
        verdicts=read("results/verdicts.json") or {},
        spectra=read("results/spectra.json") or {},
        data=_data(stage),
    )


def _state(stage: StageInput, pipeline_run: str) -> str:
    spec = stage.artifacts.read_json("spec.json") or {}
    return "ran" if spec.get("pipeline_run") == pipeline_run else "reused"


def _data(stage: StageInput) -> str:
    spec = stage.artifacts.read_json("spec.json") or {}
    return str(spec.get("parents", {}).get("data", {}).get("fingerprint", ""))


def _gallery(stage: StageInput) -> list[dict[str, Any]]:
    """Gallery entries with the paths of their pictures made absolute and verified."""
    if not stage.has("gallery"):
        return []
    folder = stage.path("gallery")
    entries = stage.artifacts.read_json("gallery/gallery.json") or []
    pictures = ("clean", "adversarial", "difference")
    return [{**entry, **{key: str(folder / entry[key]) for key in pictures if key in entry}} for entry in entries]


def _recipe(job: StageJob) -> dict[str, Any]:
    """The resolved recipe of the pipeline run, under the report's own title where it has one."""
    recipe = job.run.pipeline_recipe() or {"name": "robustrain", "seed": job.spec.seed}
    title = job.spec.config.get("title")
    return {**recipe, "name": title} if title else recipe
