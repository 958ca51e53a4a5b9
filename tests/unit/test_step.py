"""A step's decision: what it hands on, which run it takes, and what it launches with."""

import pytest

from components.errors import UserError
from components.store.job import StageSpec, execute
from components.store.tracking import Tracking
from pipeline import step
from pipeline.order import order_of
from pipeline.recipe import build
from pipeline.stages import STAGES
from tests.recipes import small


@pytest.fixture
def here(places, monkeypatch):
    for name, value in places.environment().items():
        monkeypatch.setenv(name, value)
    return places


def encode_order(**changes):
    recipe = build(small(digits={"limit_train": 40, "limit_val": 20, **changes}))
    return order_of(recipe.stages["digits"], recipe)


def test_stage_runs_then_is_reused(here):
    first = step.run_step(encode_order(), [])
    run_id, _, fingerprint = first.partition("/")
    assert len(fingerprint) == 64
    assert step.run_step(encode_order(), []) == first
    assert step.run_step(encode_order(quality=50), []) != first
    assert Tracking(here).find(fingerprint).run_id == run_id


def test_stage_is_done_again_when_asked_or_when_its_output_is_damaged(here, monkeypatch):
    first = step.run_step(encode_order(), [])
    monkeypatch.setenv(step.AGAIN_VARIABLE, "other,digits")
    again = step.run_step(encode_order(), [])
    assert again.split("/")[0] != first.split("/")[0]
    assert again.split("/")[1] == first.split("/")[1]
    monkeypatch.delenv(step.AGAIN_VARIABLE)
    tracking = Tracking(here)
    for token in (first, again):
        folder = tracking.artifacts(tracking.client.get_run(token.split("/")[0])).folder
        (folder / "manifest.json").write_text("{}")
    third = step.run_step(encode_order(), [])
    assert third.split("/")[0] not in {first.split("/")[0], again.split("/")[0]}


def test_interrupted_run_is_continued_in_the_same_run(here):
    what = step.Order.model_validate_json(encode_order())
    spec = step.specify(what, [], "", here.cache)
    run_id = Tracking(here).begin(spec)
    assert step.run_step(encode_order(), []).split("/")[0] == run_id


def test_parents_enter_by_fingerprint_and_run(here):
    recipe = build(small())
    what = step.Order.model_validate_json(order_of(recipe.stages["adversarial"], recipe))
    tokens = ["run1/" + "a" * 64, "run2/" + "b" * 64]
    spec = step.specify(what, tokens, "parent", here.cache)
    assert {role: (p.name, p.run_id) for role, p in spec.parents.items()} == {
        "data": ("digits", "run1"),
        "init": ("pretrain", "run2"),
    }
    other = step.specify(what, ["elsewhere/" + "a" * 64, tokens[1]], "", here.cache)
    assert other.fingerprint == spec.fingerprint
    changed = step.specify(what, ["run1/" + "c" * 64, tokens[1]], "", here.cache)
    assert changed.fingerprint != spec.fingerprint


def test_stage_that_leaves_no_complete_result_is_not_handed_on(here):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    spec = spec.model_copy(update={"run_id": Tracking(here).begin(spec)})
    with pytest.raises(UserError, match="without a complete result"):
        step.check(spec.model_dump())
    execute(spec, here, lambda job: {})
    assert step.check(spec.model_dump()) is None


def test_cluster_steps_share_one_parent(here, monkeypatch):
    monkeypatch.setenv(step.KFP_RUN_VARIABLE, "0123-4567")
    token = step.run_step(encode_order(), [])
    tracking = Tracking(here)
    parent = tracking.cluster_run("0123-4567")
    assert tracking.stages_of(parent) == {"digits": (token.split("/")[0], "ran")}
    step.run_step(encode_order(), [])
    assert tracking.stages_of(parent) == {"digits": (token.split("/")[0], "reused")}


def test_job_stages_are_launched_as_rayjobs_where_the_environment_says_so(here, monkeypatch):
    from components.launch import rayjob

    seen = {}
    monkeypatch.setenv(step.LAUNCHER_VARIABLE, "rayjob")
    monkeypatch.setenv("ROBUSTRAIN_IMAGE", "example/train:1")
    monkeypatch.setenv("ROBUSTRAIN_NAMESPACE", "team")
    monkeypatch.setattr(rayjob, "launch", lambda text, **asked: seen.update(asked, text=text))
    spec = StageSpec(
        name="adversarial", kind="adversarial", config={"workers": 4}, seed=0, fingerprint="f" * 64, run_id="r"
    )
    step.launch(spec, STAGES["adversarial"], here.logs / "x.log")
    assert (seen["room"], seen["stage"], seen["resources"].workers) == ("train", "adversarial", 4)
    assert StageSpec.model_validate_json(seen["text"]) == spec
