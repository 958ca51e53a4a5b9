"""Where the figures come from: the stages and their fingerprints, the conditions, the versions, the recipe."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from components.report.data import ReportStage
from components.report.figures import count, number
from components.report.markup import Content, Markup, element, join
from components.report.sections import Section
from components.report.tables import Column, table

_PACKAGES = ("robustrain", "kfp", "mlflow", "torch", "timm", "ray", "pyautoattack")


def run_line(stages: Sequence[ReportStage], written: datetime) -> str:
    """When, how many stages ran or were reused, and on which machine the report was written."""
    states: dict[str, int] = {}
    for stage in stages:
        states[stage.state or "unknown"] = states.get(stage.state or "unknown", 0) + 1
    told = ", ".join(f"{number_} {state}" for state, number_ in states.items())
    return f"{written:%d %B %Y, %H:%M} · {len(stages)} stages" + (f" ({told})" if told else "")


def stages_section(stages: Sequence[ReportStage]) -> Section | None:
    """The list of stages: state, run, fingerprint, and their configuration to unfold."""
    if not stages:
        return None
    columns = (
        Column("stage", "lead"),
        Column("kind"),
        Column("state"),
        Column("result", "wide"),
        Column("fingerprint"),
        Column("run"),
        Column("configuration", "wide plain"),
    )
    note = element(
        "p",
        "A stage whose fingerprint is known and complete is reused and not run again. The fingerprint covers its "
        "configuration, its parents and the data.",
        class_="note",
    )
    return Section("stages", "Stages", join(note, table(columns, [_stage_cells(stage) for stage in stages], "cards")))


def conditions_section(stages: Sequence[ReportStage]) -> Section:
    """What held for all figures of a stage, and the versions and machine of the process that wrote the page."""
    measured = {stage.name: stage.conditions for stage in stages if stage.conditions}
    shared = _shared(list(measured.values())) if len(measured) > 1 else {}
    blocks = [_facts("The same in every evaluation", shared)] if shared else []
    for name, facts in measured.items():
        own = {key: value for key, value in facts.items() if key not in shared}
        blocks += [_facts(f"Measured by {name}", own)] if own else []
    blocks.append(_facts("This page was written with", _here()))
    return Section("conditions", "Conditions and versions", element("div", blocks, class_="facts"))


def _shared(all_facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = all_facts
    return {key: value for key, value in first.items() if all(key in facts and facts[key] == value for facts in others)}


def recipe_section(recipe: Mapping[str, Any]) -> Section | None:
    """The recipe as it was run, after `extends` and overrides."""
    if not recipe:
        return None
    whole = element("details", element("summary", "Show the whole recipe"), element("pre", _written(recipe)))
    return Section("recipe", "Recipe", whole)


def _stage_cells(stage: ReportStage) -> list[Content]:
    return [
        element("b", stage.name),
        stage.kind,
        element("span", stage.state or "unknown", class_=f"state {'failed' if stage.failed else ''}".strip()),
        _small_result(stage.result),
        element("code", stage.fingerprint[:12] or "–", title=stage.fingerprint or None),
        element("code", stage.run_id[:8] or "–", title=stage.run_id or None),
        _unfolded(stage.config),
    ]


def _unfolded(config: Mapping[str, Any]) -> Content:
    return element("details", element("summary", "configuration"), element("pre", _written(config))) if config else "–"


def _small_result(result: Mapping[str, Any]) -> str:
    """The scalars of a result in one line; nested values stay in the artifacts."""
    said = [
        f"{key.replace('_', ' ')} {_scalar(value)}"
        for key, value in result.items()
        if isinstance(value, str | int | float)
    ]
    return "; ".join(said[:6]) or "–"


def _scalar(value: object) -> str:
    found = number(value)
    if found is None:
        return str(value)[:200]
    return count(found) if found == int(found) else f"{found:.4g}"


def _facts(title: str, facts: Mapping[str, Any]) -> Markup:
    pairs = [
        element("div", element("dt", str(key).replace("_", " ")), element("dd", _fact(value)))
        for key, value in facts.items()
    ]
    return element("div", element("h3", title), element("dl", pairs))


def _fact(value: object) -> str:
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(str(item) for item in value)
    return _written(value) if isinstance(value, Mapping | list | tuple) else str(value)


def _written(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _here() -> dict[str, str]:
    found = {name: _version(name) for name in _PACKAGES}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {**{name: known for name, known in found.items() if known}, "machine": machine}


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return ""
