"""A step's decision: what it hands on, which run it takes, and what it launches with."""

import pytest

from components.errors import UserError
from components.store.job import StageSpec, execute
from components.store.tracking import Tracking
from pipeline import cluster_parent, step
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
    assert step.check(spec.model_dump()) == {"run_id": spec.run_id}


def on_a_cluster(places, monkeypatch, run="0123-4567"):
    monkeypatch.setenv(cluster_parent.KFP_RUN_VARIABLE, run)
    return Tracking(places)


def test_cluster_steps_share_one_parent(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    token = step.run_step(encode_order(), [])
    [parent] = tracking.last_pipeline_runs()
    assert tracking.stages_of(parent["run_id"]) == {"digits": (token.split("/")[0], "ran")}
    step.run_step(encode_order(), [])
    assert [run["run_id"] for run in tracking.last_pipeline_runs()] == [parent["run_id"]]
    assert tracking.stages_of(parent["run_id"]) == {"digits": (token.split("/")[0], "reused")}


def test_the_parent_on_a_cluster_knows_its_recipe_and_stays_open_until_all_is_complete(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    recipe = build(small(digits={"limit_train": 40, "limit_val": 20}))
    step.run_step(order_of(recipe.stages["digits"], recipe), [])
    [parent] = tracking.last_pipeline_runs()
    assert (parent["name"], parent["recipe"], parent["state"]) == (recipe.name, recipe.name, "running")
    known = tracking.recipe_of(parent["run_id"])
    assert known == recipe.resolved()
    assert list(known["stages"]) == list(recipe.stages), "results and report come in this order"


def test_the_last_step_on_a_cluster_closes_the_parent(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    digits = {"kind": "encode", "source": "digits", "side": 32, "mode": "raw", "limit_train": 40, "limit_val": 20}
    recipe = build({"name": "two", "seed": 1, "stages": {"digits": digits, "more": {**digits, "quality": 50}}})
    states = []
    for stage in recipe.stages.values():
        step.run_step(order_of(stage, recipe), [])
        states.append(tracking.last_pipeline_runs()[0]["state"])
    assert states == ["running", "complete"]


def test_a_step_that_fails_on_a_cluster_marks_the_parent_and_a_good_retry_mends_it(here, monkeypatch, tmp_path):
    tracking = on_a_cluster(here, monkeypatch)
    images = tmp_path / "images"
    recipe = build({"name": "one", "seed": 1, "stages": {"mine": {"kind": "encode", "source": str(images), "side": 8}}})
    order = order_of(recipe.stages["mine"], recipe)
    with pytest.raises(UserError):
        step.run_step(order, [])
    [parent] = tracking.last_pipeline_runs()
    assert parent["state"] == "failed"
    digits = build(
        {
            "name": "one",
            "seed": 1,
            "stages": {
                "mine": {
                    "kind": "encode",
                    "source": "digits",
                    "side": 32,
                    "mode": "raw",
                    "limit_train": 40,
                    "limit_val": 20,
                }
            },
        }
    )
    step.run_step(order_of(digits.stages["mine"], digits), [])
    [parent] = tracking.last_pipeline_runs()
    assert parent["state"] == "complete"


def test_a_run_that_another_pipeline_completes_meanwhile_stays_complete(here, monkeypatch):
    """Between the look and the claim; the stage must neither run again nor unmark what is finished."""
    what = step.Order.model_validate_json(encode_order())
    spec = step.specify(what, [], "", here.cache)
    tracking = Tracking(here)
    other = spec.model_copy(update={"run_id": tracking.begin(spec)})
    look = Tracking.find

    def slowly(self, fingerprint, deep=True):
        found = look(self, fingerprint, deep)
        if found.state == "interrupted":
            execute(other, here, STAGES["encode"].function())
        return found

    monkeypatch.setattr(Tracking, "find", slowly)
    decision = step.decide(spec.model_dump())
    assert (decision["state"], decision["run_id"]) == ("reused", other.run_id)
    assert tracking.is_complete(other.run_id)


def test_work_that_is_complete_by_the_time_of_the_claim_is_not_done_again(here):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    tracking = Tracking(here)
    spec = spec.model_copy(update={"run_id": tracking.begin(spec)})
    assert tracking.begin(spec, adopt=spec.run_id) == spec.run_id, "it is interrupted, so it may be continued"
    execute(spec, here, lambda job: {"first": 1})
    assert tracking.begin(spec, adopt=spec.run_id) == ""
    assert execute(spec, here, lambda job: pytest.fail("ran again")) == {"first": 1}
    assert tracking.find("e" * 64).run_id == spec.run_id


def test_a_step_that_attached_to_anothers_job_hands_on_the_run_that_is_complete(here):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    tracking = Tracking(here)
    theirs = spec.model_copy(update={"run_id": tracking.begin(spec)})
    parent = tracking.open_pipeline_run("p", {}, {})
    ours = spec.model_copy(update={"pipeline_run": parent})
    ours = ours.model_copy(update={"run_id": tracking.begin(ours)})
    execute(theirs, here, lambda job: {})
    assert step.check(ours.model_dump()) == {"run_id": theirs.run_id}
    assert tracking.stages_of(parent) == {"x": (theirs.run_id, "reused")}


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        ({"workers": 4}, (4, 0)),
        ({"workers": 4, "workers_min": 1}, (4, 1)),
        ({"workers": 0, "workers_min": None}, (1, 0)),
    ],
)
def test_job_stages_are_launched_as_rayjobs_where_the_environment_says_so(here, monkeypatch, config, workers):
    from components.launch import rayjob

    seen = {}
    monkeypatch.setenv(step.LAUNCHER_VARIABLE, "rayjob")
    monkeypatch.setenv("ROBUSTRAIN_IMAGE", "example/train:1")
    monkeypatch.setenv("ROBUSTRAIN_NAMESPACE", "team")
    monkeypatch.setattr(rayjob, "launch", lambda text, **asked: seen.update(asked, text=text))
    spec = StageSpec(name="adversarial", kind="adversarial", config=config, seed=0, fingerprint="f" * 64, run_id="r")
    step.launch(spec, STAGES["adversarial"], here.logs / "x.log")
    assert (seen["room"], seen["stage"]) == ("train", "adversarial")
    assert (seen["resources"].workers, seen["resources"].workers_min) == workers
    assert StageSpec.model_validate_json(seen["text"]) == spec
