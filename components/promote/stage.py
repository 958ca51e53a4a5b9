"""The `promote` stage: registers the model as `challenger`, and moves `champion` only if the gate allows it.

The registered version gets a model card: its network, its accuracy under which attacks, and its intended use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.promote.config import PromoteConfig
from components.promote.gate import Decision, JudgedResult, decide, judged_result, result_to_compare
from components.result_rows import (
    RESULTS,
    VERDICTS,
    Conditions,
    EvaluationResults,
    ResultRow,
    Verdicts,
    read_results,
    read_verdicts,
)
from components.store.registry import CHALLENGER, EVALUATION_FINGERPRINT, EVALUATION_RUN, Registry, Version
from components.store.settings import StorageSettings
from components.threats import radius_text, threat_text
from components.wording import percent

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


_NOT_FOR = (
    "Robust accuracies hold for the listed norms and radii only. They say nothing about other perturbations "
    "(rotations, patches, blur, weather), about images unlike those of the data set, or about stronger attacks "
    "still to be found. They are measured, not certified: an image called robust is one that these attacks did "
    "not break."
)


def model_card(
    *,
    name: str,
    model: Mapping[str, Any],
    results: EvaluationResults,
    decision: Decision,
    intended_use: str,
    lineage: Mapping[str, str],
) -> str:
    """The card as Markdown.

    Args:
        model: `model.json` of the saved model.
        results: of the evaluation.
        lineage: further facts, one a line (stage, run, fingerprint, ...).
    """
    conditions = results.conditions
    parts = [
        f"# {_plain(name)}",
        f"{_plain(model['name'])} with a {'ConvStem' if model['stem'] == 'conv' else 'PatchStem'}, "
        f"{model['num_classes']} classes, {model['resolution']} px, trained on {_plain(conditions.dataset)}.",
        "## Intended use",
        _plain(intended_use)
        or "Image classification where images may be perturbed on purpose within the radii below. "
        "No use beyond that was stated.",
        _NOT_FOR,
        "## Accuracy",
        _table(results.rows),
        *_notes(results),
        "## Conditions",
        _list({key: _word(value) for key, value in conditions.model_dump(mode="json").items()}),
        "## Decision",
        f"**{'Promoted to champion' if decision.promote else 'Not promoted: stays challenger'}.**",
        "\n".join(f"- {'no' if reason in decision.failed else 'yes'}: {_plain(reason)}" for reason in decision.reasons),
        "## Input",
        _input(model),
        "## Lineage",
        _list(lineage),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[ResultRow]) -> str:
    head = "| resolution | norm | radius | attack | n | clean | robust | 95 % interval |\n" + "|---" * 8 + "|"
    lines = [
        f"| {row.resolution} px | {row.norm} | {radius_text(row.eps)} | {row.attack} | {row.n} "
        f"| {percent(row.clean_accuracy)} | {percent(row.robust_accuracy)} "
        f"| {percent(row.interval[0])} to {percent(row.interval[1])} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _notes(results: EvaluationResults) -> list[str]:
    """The worst cases with their radii, which matter as much as their norms, and notes on capped targets."""
    notes = []
    for row in results.union:
        threats = ", ".join(threat_text(one.norm, one.eps) for one in row.threats)
        low, high = (percent(bound) for bound in row.interval)
        notes.append(
            f"Worst case over {threats}, image by image: {percent(row.robust_accuracy)} ({low} to {high}, "
            f"n = {row.n}, {row.resolution} px)."
        )
    capped = [
        f"{row.attack} {row.norm}: {row.details.targets_note}." for row in results.rows if row.details.targets_note
    ]
    return list(dict.fromkeys([*notes, *capped]))


def _input(model: Mapping[str, Any]) -> str:
    normalised = "its normaliser is a layer of the model" if model.get("normalize") else "it has no normaliser"
    ratio = model.get("crop_ratio", 1.0)
    crop = f"shorter side resized to floor(resolution / {ratio}), bicubic, then the centre cut out"
    return f"RGB images in [0, 1], channels first; {normalised}. Preparation: {crop if ratio < 1 else 'resized'}."


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in facts.items())


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """Text in which Markdown and HTML are escaped; names of stages and classes come from recipes and folders."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join(f"\\{letter}" if letter in "|`*[]" else letter for letter in escaped)
