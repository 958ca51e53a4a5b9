"""Evaluations with every image's verdict, as the quickstart leaves them: the same first images, other models."""

from __future__ import annotations

from typing import Any

from components.report.data import ReportStage
from components.result_rows import ResultRow, read_results, read_verdicts
from components.statistics import wilson
from components.threats import ATTACKS
from tests.result_documents import results_document, row_document

Threats = dict[tuple[str, float, str], list[str | None]]
"""(norm, radius, key of the attack) -> one verdict for each image."""


def kept(pattern: str, broken_by: str = "APGD-CE") -> list[str | None]:
    """ "1" is robust, "0" broken, "f" broken by FAB-T alone; anything else was not attacked."""
    words = {"1": "robust", "0": broken_by, "f": "FAB-T"}
    return [words.get(letter) for letter in pattern]


def evaluation(
    name: str, threats: Threats, *, kind: str = "adversarial", stem: str = "conv", first: int = 0, **conditions: Any
) -> ReportStage:
    """The evaluation of one model; `first` shifts the images, so that other ones are measured."""
    n = max(len(words) for words in threats.values())
    images = [_image(7 * (first + i), i % 10, [_at(words, i) for words in threats.values()]) for i in range(n)]
    listed = [
        {"norm": norm, "eps": eps, "attack": attack, "title": "", "n": sum(word is not None for word in words)}
        for (norm, eps, attack), words in threats.items()
    ]
    rows = [_row(name, kind, stem, key, words) for key, words in threats.items()]
    known = {"dataset": "digits", "images_digest": f"{first} to {n}", **conditions}
    results = read_results(results_document(rows, **known), where=name)
    return ReportStage(
        name=f"evaluate-{name}",
        kind="evaluate",
        config={"model": name},
        rows=results.rows,
        conditions=results.conditions,
        verdicts=read_verdicts({"resolutions": [{"resolution": 32, "threats": listed, "images": images}]}, where=name),
        data="d" * 64,
    )


def short_row(stage: ReportStage) -> ResultRow:
    """The row of the shorter attack, as `evaluate` reads it off a run of the whole attack."""
    assert stage.verdicts is not None
    (whole,) = [row for row in stage.rows if row.attack == "AutoAttack"]
    words = [image.verdicts[0] for image in stage.verdicts.resolutions[0].images]
    robust = sum(word in {"robust", "FAB-T", "Square"} for word in words)
    return whole.model_copy(update={"attack": "APGD-CE+APGD-T", "robust_accuracy": robust / len(words)})


def _at(words: list[str | None], position: int) -> str | None:
    return words[position] if position < len(words) else None


def _image(index: int, label: int, words: list[str | None]) -> dict[str, Any]:
    return {
        "index": index,
        "label": label,
        "clean_prediction": label,
        "verdicts": words,
        "predictions": [None if word is None else label for word in words],
        "distances": [None if word is None else 0.0 for word in words],
    }


def _row(name: str, kind: str, stem: str, key: tuple[str, float, str], words: list[str | None]) -> dict[str, Any]:
    norm, eps, attack = key
    known = [word for word in words if word is not None]
    robust, n = sum(word == "robust" for word in known), len(known)
    return row_document(
        kind=kind,
        stage=name,
        model="convnext_micro",
        stem=stem,
        dataset="digits",
        resolution=32,
        norm=norm,
        eps=eps,
        attack=ATTACKS[attack].title,
        n=n,
        clean_accuracy=1.0,
        robust_accuracy=robust / n,
        interval=list(wilson(robust, n)),
    )
