"""A new attack and a new kind of stage are one row each, plus their code: plan, run, results, report, promotion follow.

Nothing else is changed here: no other table, no list, no reader.
"""

import json

import pytest
import yaml

import components.models  # noqa: F401
from components.evaluate.config import EvaluateConfig
from components.promote.stage import run as run_promote
from components.store.registry import Registry
from components.store.tracking import Tracking
from components.threats import ATTACKS, Attack, AttackPart
from pipeline import results
from pipeline.plan import plan
from pipeline.recipe import build
from pipeline.stages import DATA, EVALUATION, MODEL, STAGES, Role, StageKind
from tests.digits_model import ENCODE, PRETRAIN, fit

pytestmark = pytest.mark.slow

INVERSION = Attack(
    "inversion",
    "Inversion",
    parts=(AttackPart("inversion", "Inversion", model_calls=1, forwards=1),),
    strength=5,
    seconds_per_image=0.01,
    module="tests.made_up_attack",
)
AUDIT = StageKind(
    "audit",
    "a made-up evaluation",
    version=1,
    config=EvaluateConfig,
    entry="components.evaluate.stage:run",
    makes=EVALUATION,
    roles={"model": Role(MODEL), "data": Role(DATA, required=False)},
    seconds=lambda config: config.estimated_seconds,
)
RECIPE = """
name: extended
stages:
  digits: {kind: encode}
  net: {kind: pretrain}
  audit: {model: net, num_images: 20, batch_size: 8, gallery: 2, num_processes: 1}
  report: {}
  promote: {model: net, evaluation: audit, attack: inversion, name: extended}
"""
THREATS = [{"eps": "40/255", "attack": "Inversion"}, {"norm": "L2", "eps": 4, "attack": "inversion", "num_images": 9}]


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(ATTACKS, "inversion", INVERSION)
    monkeypatch.setitem(STAGES, "audit", AUDIT)
    document = yaml.safe_load(RECIPE)
    document["stages"]["digits"] |= ENCODE
    document["stages"]["net"] |= PRETRAIN
    document["stages"]["audit"]["threats"] = THREATS
    return build(document)


def test_the_recipe_is_planned_with_the_new_rows(recipe, storage):
    assert recipe.stages["audit"].parents == {"model": "net", "data": "digits"}
    assert set(recipe.stages["report"].parents) == {"digits", "net", "audit"}
    planned = {stage.name: stage for stage in plan(recipe, storage)}
    assert (planned["audit"].kind, planned["audit"].action) == ("audit", "run")
    audit = recipe.stages["audit"]
    assert audit.kind.seconds(audit.config) == pytest.approx(29 * 0.01)
    assert [threat.title for threat in audit.config.threats] == ["Inversion Linf 40/255", "Inversion L2 4"]


@pytest.fixture
def ran(recipe, run_stage, storage):
    """Every stage of the recipe but promote, run in this process and recorded as one pipeline run."""
    tracking = Tracking(storage)
    run = tracking.open_pipeline_run(recipe.name, {"recipe": recipe.name}, recipe.resolved())
    done = {}
    for stage in recipe.stages.values():
        if stage.name != "promote":
            parents = {role: done[name] for role, name in stage.parents.items()}
            config = stage.config.model_dump(mode="json")
            function = fit if stage.kind.trains else None
            done[stage.name] = run_stage(stage.kind.name, config, parents, name=stage.name, function=function)
            tracking.record_stage(run, stage.name, done[stage.name].run_id, "ran")
    tracking.close_pipeline_run(run, state="complete")
    return done


def test_results_and_report_show_the_new_attack_of_the_new_stage(ran, storage):
    found = results.read(storage)
    assert [(row.threat, row.attack, row.n) for row in found.rows] == [
        ("L2 4", "Inversion", 9),
        ("Linf 40/255", "Inversion", 20),
    ]
    assert {(row.stage, row.kind, row.details.attack_library) for row in found.rows} == {
        ("net", "pretrain", "made-up 1.0")
    }
    assert all(row.robust_accuracy < row.clean_accuracy for row in found.rows)
    assert [row.attack for row in found.worst_case] == ["Inversion"]
    page = ran["report"].path("report.html").read_text()
    assert "Inversion" in page
    assert "40/255" in page
    assert "made-up 1.0" in page
    words = {word for image in verdicts(ran)["images"] for word in image["verdicts"]}
    assert {"robust", "Inversion"} <= words <= {"robust", "wrong", "Inversion", None}


def test_the_gate_judges_by_the_new_attack(ran, recipe, run_stage, storage):
    stage = recipe.stages["promote"]
    parents = {role: ran[name] for role, name in stage.parents.items()}
    config = stage.config.model_dump(mode="json")
    answer = run_stage("promote", config, parents, function=lambda job: run_promote(job, Registry(storage)))
    assert answer.result["promoted"] is True
    assert any("was measured by Inversion; Inversion is asked for" in reason for reason in answer.result["reasons"])


def verdicts(ran):
    return json.loads(ran["audit"].path("results/verdicts.json").read_text())["resolutions"][0]
