"""The model card of a registered model: its network, its accuracy under which attacks, and its intended use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.promote.gate import Decision
from components.result_rows import EvaluationResults, ResultRow
from components.threats import radius_text, threat_text
from components.wording import percent

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
