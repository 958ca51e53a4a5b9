"""The `promote` stage: registers the model as `challenger`, asks the gate, and moves `champion` only on a yes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.promote.card import model_card
from components.promote.config import PromoteConfig
from components.promote.gate import Decision, decide
from components.promote.judged import Judged, judged_figure
from components.store.registry import CHALLENGER, Registry
from components.store.settings import StorageSettings

if TYPE_CHECKING:
    from components.store.execute import StageJob

MODEL, CARD, DECISION = "model", "model_card.md", "decision.json"


def run(job: StageJob, registry: Registry | None = None) -> dict[str, Any]:
    """Judges one model; artifacts `decision.json` and `model_card.md`.

    A model that is refused stays registered as `challenger`, and the stage succeeds: a refusal is an answer.

    Args:
        registry: that of the environment's storage when not given.

    Returns:
        promoted, version, reasons, and the judged figure.

    Raises:
        UserError: the evaluation is of another model, or has no figure to judge.
    """
    config = PromoteConfig.model_validate(job.spec.config)
    registry = registry or Registry(StorageSettings.from_environment())
    model, evaluation = job.inputs["model"], job.inputs["evaluation"]
    document, verdicts = (_json(evaluation.path(f"results/{name}.json")) for name in ("results", "verdicts"))
    card = _json(model.path(MODEL) / "model.json")
    _check_same_model(job, document["conditions"], card)
    figure = judged_figure(document, verdicts, config)
    champion = registry.champion(config.name)
    # Judging the champion against itself would refuse it; a stage that is run again must not undo its own answer.
    rival = champion if champion and champion.run_id != model.run_id else None
    decision = decide(figure, Judged.from_tags(rival.tags) if rival else None, config, has_champion=rival is not None)
    tags = {**figure.to_tags(), "evaluation_run": evaluation.run_id, "evaluation_fingerprint": evaluation.fingerprint}
    version = registry.register(config.name, model.run_id, MODEL, tags)
    registry.set_alias(config.name, CHALLENGER, version.version)
    lineage = {
        "version": f"{config.name} {version.version}",
        "stage": f"{model.name} ({model.kind})",
        "run": model.run_id,
        "fingerprint": model.fingerprint,
        "evaluation_run": evaluation.run_id,
    }
    _leave(job, config, document, decision, lineage, card, figure)
    if decision.promote:
        registry.promote(config.name, version.version)
    return {
        "promoted": decision.promote,
        "registered": config.name,
        "version": version.version,
        "champion_before": champion.version if champion else None,
        "reasons": decision.reasons,
        "robust_accuracy": figure.robust_accuracy,
        "clean_accuracy": figure.clean_accuracy,
    }


def _check_same_model(job: StageJob, measured: dict[str, Any], card: dict[str, Any]) -> None:
    """The evaluation is of this model: of its run, or of another run that ended with the same weights.

    Raises:
        UserError: it is of other weights.
    """
    model, evaluation = job.inputs["model"], job.inputs["evaluation"]
    if measured.get("model_run") == model.run_id:
        return
    ours = (card.get("weights") or {}).get("sha256")
    if ours is None or ours != measured.get("model_sha256"):
        raise UserError(
            f"the evaluation {evaluation.name!r} did not measure these weights of {model.name!r}",
            where=f"{job.spec.name}.evaluation",
            remedy=f"name the evaluate stage of that model, or evaluate it once more with --again {evaluation.name}",
        )


def _leave(
    job: StageJob,
    config: PromoteConfig,
    results: dict[str, Any],
    decision: Decision,
    lineage: dict[str, str],
    model: dict[str, Any],
    figure: Judged,
) -> None:
    difference = decision.difference
    answer = {
        "promote": decision.promote,
        "passed": decision.passed,
        "failed": decision.failed,
        "conditions": figure.conditions,
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
    for name, text in ((DECISION, json.dumps(answer, indent=1) + "\n"), (CARD, card)):
        path: Path = job.run.workdir / name
        path.write_text(text, encoding="utf-8")
        job.run.save(path, name)
    job.run.log_metrics({"promoted": float(decision.promote), "robust_accuracy": figure.robust_accuracy})


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
