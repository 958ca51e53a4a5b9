"""Writes the page: one HTML file that needs no other file, rendered from Jinja2 templates with automatic escaping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from components.errors import UserError
from components.files import write_atomically
from components.report.charts import CLEAN_STYLE
from components.report.data import ReportStage
from components.report.experiment import Experiment
from components.report.headline import headline_sentences
from components.report.sections import ReportData, all_sections
from components.report.svg import interval_bar, key_mark
from components.wording import count, interval, listed, percent, points, sample_size

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent

MARK = "robustrain report</title>"
"""In the head of every report (`page.html.j2`), by which it is recognised."""

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\N{REPLACEMENT CHARACTER}")
"""Characters that neither HTML nor XML allows; they can only come from data."""


def build_report(
    recipe: Mapping[str, Any],
    stages: Sequence[ReportStage],
    out: Path,
    *,
    written: datetime | None = None,
    experiment: Experiment | None = None,
) -> Path:
    """Writes the report of a run.

    Args:
        recipe: the recipe as plain data; `name` and `summary` are shown, the rest can be unfolded.
        stages: the run's stages in order, finished or not; the page leaves out what one lacks.
        out: the HTML file; folders are made, and an existing file is replaced in one step.
        written: the date on the page; default: now.
        experiment: a question and its answer, which then is the page's first section.

    Returns:
        `out`.

    Raises:
        UserError: the file cannot be written.
    """
    text = render(recipe, stages, written or datetime.now().astimezone(), experiment)
    try:
        return write_atomically(out, text)
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror or error})",
            where=str(out),
            remedy="choose a folder that can be written to and has free space",
        ) from error


def render(
    recipe: Mapping[str, Any], stages: Sequence[ReportStage], written: datetime, experiment: Experiment | None = None
) -> str:
    """Returns the page as text. It is well-formed XML after its first line."""
    data = ReportData.of(stages)
    return render_template(
        "page.html.j2",
        name=str(recipe.get("name") or "run"),
        description=recipe.get("summary") or recipe.get("description"),
        run_line=_run_line(stages, written),
        failed=[stage.name for stage in stages if stage.failed],
        headline=data.headline,
        sentences=headline_sentences(data.headline),
        sections=list(all_sections(data, recipe, experiment)),
        styles=data.styles,
        clean_style=CLEAN_STYLE,
    )


def render_template(template: str, **context: Any) -> str:
    """Returns a template of this package as text. Every value is escaped unless it is `Markup` already.

    Args:
        template: file name.
        context: the template's variables; a missing one is an error.
    """
    # Our own file, so it is trusted; escaping would break its quotes.
    style = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    text = _environment().get_template(template).render(style=style, **context)
    return text.translate(_CONTROLS)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(key_mark=key_mark, interval_bar=interval_bar)
    environment.filters.update(
        percent=percent,
        points=points,
        count=count,
        listed=listed,
        sample_size=sample_size,
        interval=lambda bounds: interval(*bounds),
        pretty_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        scalars=_scalars,
    )
    return environment


def _run_line(stages: Sequence[ReportStage], written: datetime) -> str:
    """The date, the number of stages, and how many of them ran or were reused."""
    states: dict[str, int] = {}
    for stage in stages:
        states[stage.state or "unknown"] = states.get(stage.state or "unknown", 0) + 1
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"{written:%d %B %Y, %H:%M} · {len(stages)} stages" + (f" ({counted})" if counted else "")


def _scalars(result: Mapping[str, Any]) -> str:
    """The first scalars of a stage's result in one line; nested values stay in the artifacts."""
    words = [f"{key.replace('_', ' ')} {_scalar(value)}" for key, value in result.items() if _is_scalar(value)]
    return "; ".join(words[:6])


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float)


def _scalar(value: str | float) -> str:
    if isinstance(value, str | bool):
        return str(value)[:200]
    return count(value) if value == int(value) else f"{value:.4g}"
