"""The page: one HTML file that needs nothing beside it, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.report.charts import CLEAN_STYLE, Styles
from components.report.data import ReportStage
from components.report.experiment import Experiment
from components.report.figures import count, interval, percent
from components.report.headline import Headline, sentences
from components.report.markup import Markup, element, join, trusted
from components.report.measurement import Measurement
from components.report.provenance import conditions_section, recipe_section, run_line, stages_section
from components.report.sections import Material, Section, gather, sections
from components.store.digests import write_atomically

# Even if something hostile came through, the browser would fetch and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def build_report(
    recipe: Mapping[str, Any],
    stages: Sequence[ReportStage],
    out: Path,
    *,
    written: datetime | None = None,
    experiment: Experiment | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        recipe: the recipe as plain data; `name` and `summary` are shown, the rest can be unfolded.
        stages: the run's stages in order, finished or not; what one lacks is left out of the page.
        out: the HTML file; folders are made, and a file that is there is replaced in one step.
        written: the date on the page; now when not given.
        experiment: a question and its answer, which then is the page's first section.

    Returns:
        `out`.

    Raises:
        UserError: the file cannot be written there.
    """
    moment = written or datetime.now().astimezone()
    return _write(out, render(recipe, stages, moment, experiment))


def render(
    recipe: Mapping[str, Any], stages: Sequence[ReportStage], written: datetime, experiment: Experiment | None = None
) -> str:
    """The page as text. It is well-formed XML after its first line."""
    material = gather(stages)
    parts = [
        *sections(material, experiment),
        stages_section(stages),
        conditions_section(stages),
        recipe_section(recipe),
    ]
    present = [part for part in parts if part is not None]
    name = str(recipe.get("name") or "run")
    body = element(
        "body",
        _header(recipe, name, material, written),
        element("main", _contents(present), [_section(part) for part in present]),
        element("footer", "Written by robustrain. Every sentence and figure is computed from the stages' own results."),
    )
    return "<!DOCTYPE html>\n" + element("html", head(f"{name} · robustrain report"), body, lang="en") + "\n"


def head(title: str) -> Markup:
    """The head of a page of ours: style sheet, and a policy under which a browser fetches and runs nothing."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", trusted(style)),
    )


def _header(recipe: Mapping[str, Any], name: str, material: Material, written: datetime) -> Markup:
    described = recipe.get("summary") or recipe.get("description")
    first, *others = sentences(material.headline)
    return element(
        "header",
        element("p", "Robustrain report", class_="eyebrow"),
        element("h1", name),
        element("p", str(described), class_="about") if described else None,
        element("p", run_line(material.stages, written), class_="run"),
        _warning(material.stages),
        element("p", first, class_="headline"),
        [element("p", other, class_="headline second") for other in others],
        _tiles(material.headline, material.styles),
    )


def _warning(stages: Sequence[ReportStage]) -> Markup | None:
    failed = [stage.name for stage in stages if stage.failed]
    if not failed:
        return None
    return element(
        "p", f"Not complete: {', '.join(failed)} failed. What depends on it is missing here.", class_="warning"
    )


def _tiles(headline: Headline, styles: Styles) -> Markup | None:
    best, clean = headline.robust, headline.clean
    if best is None:
        return None
    tiles = [_robust_tile("Trained under attack", best, styles)]
    if clean is not None:
        tiles.append(_robust_tile("Trained clean", clean, styles))
    beside = f"trained clean: {percent(clean.clean)}" if clean else ""
    tiles.append(
        _tile("What it costs", percent(best.clean), ["clean accuracy, trained under attack", beside], CLEAN_STYLE)
    )
    return element("div", tiles, class_="tiles")


def _robust_tile(title: str, row: Measurement, styles: Styles) -> Markup:
    bounds = f"robust accuracy, 95 % interval {interval(row.low, row.high)}"
    return _tile(
        title, percent(row.robust), [bounds, f"{row.threat}, {row.attack}, n = {count(row.n)}"], styles.get(row.name, 0)
    )


def _tile(title: str, figure: str, small: Sequence[str], style: int) -> Markup:
    lines = [element("span", line) for line in small if line]
    told = [element("p", title), element("p", figure, class_="big"), element("p", lines, class_="small")]
    return element("div", told, class_=f"tile s{style % 8}")


def _contents(parts: Sequence[Section]) -> Markup:
    return element("nav", [element("a", part.title, href=f"#{part.key}") for part in parts], aria_label="Contents")


def _section(part: Section) -> Markup:
    return element("section", element("h2", part.title), join(part.body), id=part.key)


def _write(out: Path, text: str) -> Path:
    try:
        return write_atomically(out, text)
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror or error})",
            where=str(out),
            remedy="Choose a folder that can be written to and has room",
        ) from error
