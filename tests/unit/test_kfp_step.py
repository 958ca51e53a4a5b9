"""A step of the compiled pipeline: the pipeline's run on a cluster, and what a step launches."""

import pytest

from components.errors import UserError
from components.store.spec import StageSpec
from components.store.tracking import Tracking
from pipeline import kfp_step
from pipeline.recipe import build
from pipeline.stage_runner import stage_definition_json
from pipeline.stages import STAGES
from tests.recipes import small

pytestmark = pytest.mark.slow  # steps with an MLflow run each


@pytest.fixture
def here(storage, monkeypatch):
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    return storage


def encoding():
    recipe = build(small(digits={"max_train_images": 40, "max_val_images": 20}))
    return stage_definition_json(recipe.stages["digits"], recipe)


def test_a_step_runs_again_what_the_environment_names(here, monkeypatch):
    first = kfp_step.run_step(encoding(), [])
    assert kfp_step.run_step(encoding(), []) == first
    monkeypatch.setenv(kfp_step.AGAIN_VARIABLE, "other,digits")
    assert kfp_step.run_step(encoding(), []) != first


def on_a_cluster(storage, monkeypatch, run="0123-4567"):
    monkeypatch.setenv(kfp_step.KFP_RUN_VARIABLE, run)
    return Tracking(storage)


def test_cluster_steps_share_one_parent(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    token = kfp_step.run_step(encoding(), [])
    [parent] = tracking.last_pipeline_runs()
    assert tracking.stages_of(parent["run_id"]) == {"digits": (token.split("/")[0], "ran")}
    kfp_step.run_step(encoding(), [])
    assert [run["run_id"] for run in tracking.last_pipeline_runs()] == [parent["run_id"]]
    assert tracking.stages_of(parent["run_id"]) == {"digits": (token.split("/")[0], "reused")}


def test_the_parent_on_a_cluster_knows_its_recipe_and_stays_open_until_all_is_complete(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    recipe = build(small(digits={"max_train_images": 40, "max_val_images": 20}))
    kfp_step.run_step(stage_definition_json(recipe.stages["digits"], recipe), [])
    [parent] = tracking.last_pipeline_runs()
    assert (parent["name"], parent["recipe"], parent["state"]) == (recipe.name, recipe.name, "running")
    known = tracking.recipe_of(parent["run_id"])
    assert known == recipe.resolved()
    assert list(known["stages"]) == list(recipe.stages), "results and report come in this order"


def test_the_last_step_on_a_cluster_closes_the_parent(here, monkeypatch):
    tracking = on_a_cluster(here, monkeypatch)
    digits = {
        "kind": "encode",
        "source": "digits",
        "max_short_side": 32,
        "mode": "raw",
        "max_train_images": 40,
        "max_val_images": 20,
    }
    recipe = build({"name": "two", "seed": 1, "stages": {"digits": digits, "more": {**digits, "quality": 50}}})
    states = []
    for stage in recipe.stages.values():
        kfp_step.run_step(stage_definition_json(stage, recipe), [])
        states.append(tracking.last_pipeline_runs()[0]["state"])
    assert states == ["running", "complete"]


def test_a_step_that_fails_on_a_cluster_marks_the_parent_and_a_good_retry_completes_it(here, monkeypatch, tmp_path):
    tracking = on_a_cluster(here, monkeypatch)
    images = tmp_path / "images"
    recipe = build(
        {"name": "one", "seed": 1, "stages": {"mine": {"kind": "encode", "source": str(images), "max_short_side": 8}}}
    )
    definition = stage_definition_json(recipe.stages["mine"], recipe)
    with pytest.raises(UserError):
        kfp_step.run_step(definition, [])
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
                    "max_short_side": 32,
                    "mode": "raw",
                    "max_train_images": 40,
                    "max_val_images": 20,
                }
            },
        }
    )
    kfp_step.run_step(stage_definition_json(digits.stages["mine"], digits), [])
    [parent] = tracking.last_pipeline_runs()
    assert parent["state"] == "complete"


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        ({"num_workers": 4}, (4, 0)),
        ({"num_workers": 4, "min_workers": 1}, (4, 1)),
        ({"num_workers": 0, "min_workers": None}, (1, 0)),
    ],
)
def test_stages_with_resources_are_launched_as_rayjobs(here, monkeypatch, config, workers):
    from components.launch import rayjob

    seen = {}
    monkeypatch.setenv("ROBUSTRAIN_IMAGE", "example/train:1")
    monkeypatch.setenv("ROBUSTRAIN_NAMESPACE", "team")
    monkeypatch.setattr(rayjob, "launch", lambda text, **asked: seen.update(asked, text=text))
    spec = StageSpec(name="adversarial", kind="adversarial", config=config, seed=0, fingerprint="f" * 64, run_id="r")
    kfp_step.launch_rayjob(spec, STAGES["adversarial"], here.logs / "x.log")
    assert (seen["package"], seen["stage"]) == ("train", "adversarial")
    assert (seen["resources"].workers, seen["resources"].workers_min) == workers
    assert StageSpec.model_validate_json(seen["text"]) == spec


def test_the_environment_chooses_the_rayjob(here, monkeypatch):
    """Nothing is claimed by a file lock then: the RayJob's name is the claim."""
    launched = []

    def launch(spec, kind, log):
        launched.append(spec.name)
        kfp_step.launch_in_process(spec, kind, log)

    monkeypatch.setattr(kfp_step, "launch_rayjob", launch)
    monkeypatch.setenv(kfp_step.LAUNCHER_VARIABLE, "rayjob")
    kfp_step.run_step(encoding(), [])
    assert launched == ["digits"]
    assert not [lock for lock in here.locks.iterdir() if len(lock.stem) == 64]
