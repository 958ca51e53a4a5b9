"""The `promote` stage: registers the model as `challenger`, and moves `champion` only if the gate allows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.promote.config import PromoteConfig
from components.promote.gate import Decision, JudgedResult, decide, judged_result, result_to_compare
from components.promote.registry_card import model_card
from components.result_rows import (
    RESULTS,
    VERDICTS,
    Conditions,
    EvaluationResults,
    Verdicts,
    read_results,
    read_verdicts,
)
from components.store.registry import CHALLENGER, EVALUATION_FINGERPRINT, EVALUATION_RUN, Registry, Version
from components.store.settings import StorageSettings

if TYPE_CHECKING:
    from components.store.execute import StageJob
    from components.store.run import StageInput

MODEL, CARD, DECISION = "model", "model_card.md", "decision.json"


def run(job: StageJob, registry: Registry | None = None) -> dict[str, Any]:
    """Judges one model; artifacts `decision.json` and `model_card.md`.

    A model that is refused stays registered as `challenger`, and the stage succeeds: a refusal is a valid decision.

    Args:
        registry: default: the one of the environment's storage settings.

    Returns:
        promoted, version, reasons, and the accuracies of the judged result.

    Raises:
        UserError: the evaluation is of another model, or has no result to judge.
    """
    config = PromoteConfig.model_validate(job.spec.config)
    registry = registry or Registry(StorageSettings.from_environment())
    model, evaluation = job.inputs["model"], job.inputs["evaluation"]
    results, verdicts = _read(evaluation)
    card = _json(model.path(MODEL) / "model.json")
    _check_same_model(job, results.conditions, card)
    challenger = judged_result(results, verdicts, config)
    champion = registry.champion(config.name)
    # Judging the champion against itself would refuse it; a stage that is run again must not undo its own decision.
    rival = champion if champion and champion.run_id != model.run_id else None
    known = _result_of(job, registry, rival, challenger) if rival else None
    decision = decide(challenger, known, config, has_champion=rival is not None)
    tags = {EVALUATION_RUN: evaluation.run_id, EVALUATION_FINGERPRINT: evaluation.fingerprint}
    version = registry.register(config.name, model.run_id, MODEL, tags)
    registry.set_alias(config.name, CHALLENGER, version.version)
    lineage = {
        "version": f"{config.name} {version.version}",
        "stage": f"{model.name} ({model.kind})",
        "run": model.run_id,
        "fingerprint": model.fingerprint,
        "evaluation_run": evaluation.run_id,
    }
    _save(job, config, results, decision, lineage, card, challenger)
    if decision.promote:
        registry.promote(config.name, version.version)
    return {
        "promoted": decision.promote,
        "registered": config.name,
        "version": version.version,
        "champion_before": champion.version if champion else None,
        "reasons": decision.reasons,
        "robust_accuracy": challenger.robust_accuracy,
        "clean_accuracy": challenger.clean_accuracy,
    }


def _read(evaluation: StageInput) -> tuple[EvaluationResults, Verdicts]:
    """An evaluation's results and verdicts, verified against its manifest."""
    results, verdicts = (_json(evaluation.path(artifact)) for artifact in (RESULTS, VERDICTS))
    return read_results(results, where=evaluation.name), read_verdicts(verdicts, where=evaluation.name)


def _result_of(job: StageJob, registry: Registry, champion: Version, challenger: JudgedResult) -> JudgedResult | None:
    """The champion's result, from the evaluation that its registry tags name; None if that can no longer be read."""
    try:
        evaluation = registry.evaluation_of(champion)
        return result_to_compare(*_read(evaluation), challenger) if evaluation else None
    except UserError as error:
        job.run.warn(f"the champion's evaluation cannot be read: {error}")
        return None


def _check_same_model(job: StageJob, measured: Conditions, card: dict[str, Any]) -> None:
    """Checks that the evaluation is of this model: of its run, or of another run that ended with the same weights.

    Raises:
        UserError: it is of other weights.
    """
    model, evaluation = job.inputs["model"], job.inputs["evaluation"]
    if measured.model_run == model.run_id:
        return
    ours = (card.get("weights") or {}).get("sha256")
    if ours is None or ours != measured.model_sha256:
        raise UserError(
            f"the evaluation {evaluation.name!r} did not measure these weights of {model.name!r}",
            where=f"{job.spec.name}.evaluation",
            remedy=f"name the evaluate stage of that model, or evaluate it again with --again {evaluation.name}",
        )


def _save(
    job: StageJob,
    config: PromoteConfig,
    results: EvaluationResults,
    decision: Decision,
    lineage: dict[str, str],
    model: dict[str, Any],
    challenger: JudgedResult,
) -> None:
    difference = decision.difference
    document = {
        "promote": decision.promote,
        "passed": decision.passed,
        "failed": decision.failed,
        "conditions": challenger.conditions,
        "difference": vars(difference) if difference else None,
        "rules": config.model_dump(mode="json"),
    }
    card = model_card(
        name=config.name,
        model=model,
        results=results,
        decision=decision,
        intended_use=config.intended_use,
        lineage=lineage,
    )
    for name, text in ((DECISION, json.dumps(document, indent=1) + "\n"), (CARD, card)):
        path: Path = job.run.workdir / name
        path.write_text(text, encoding="utf-8")
        job.run.save(path, name)
    job.run.log_metrics({"promoted": float(decision.promote), "robust_accuracy": challenger.robust_accuracy})


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
