"""What stands under "Against the paper": this run's figures beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence

from components.report.data import ReportStage
from components.report.figures import listed
from components.report.markup import Content, Markup, element, join
from components.report.measurement import Measurement
from components.report.paper import against_paper
from components.report.tables import paper_table, published_table


def paper_body(rows: Sequence[Measurement], stages: Sequence[ReportStage]) -> Markup:
    """Our figures beside the published ones where there are any, and all published ones to unfold."""
    found = against_paper(rows, _classes(stages), _imported(stages))
    source = "Singh, Croce, Hein: Revisiting Adversarial Training for ImageNet (NeurIPS 2023), arXiv 2303.01870"
    if found:
        body = join(
            _paragraph(f"The same network at the same norm, radius and resolution. Published: {source}."),
            paper_table(found),
        )
    else:
        models = listed(sorted({row.model_title for row in rows})) or "nothing"
        body = _paragraph(
            f"No figure of this run stands beside a published one: measured were {models}, none of them with the norm, "
            f"radius and resolution of a network in {source}."
        )
    known = _paragraph(
        "AutoAttack on RobustBench's 5 000 validation images, on which these networks reach about two points more than "
        "third parties measured on all 50 000. Figures on other or smaller data sets are not comparable."
    )
    shown = element("details", element("summary", "The published figures, for orientation"), known, published_table())
    return join(body, shown)


def _imported(stages: Sequence[ReportStage]) -> set[str]:
    return {stage.name for stage in stages if str(stage.config.get("init", "")).startswith("file:")}


def _classes(stages: Sequence[ReportStage]) -> dict[str, int]:
    results = [stage.result for stage in stages if stage.kind == "encode"]
    return {
        str(one["dataset"]): one["classes"]
        for one in results
        if isinstance(one.get("classes"), int) and "dataset" in one
    }


def _paragraph(*content: Content) -> Markup:
    return element("p", content, class_="note")
