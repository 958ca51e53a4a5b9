"""One stage: which run it takes, what the next stages get, and when it is run again."""

import json
import threading

import pytest

from components.errors import UserError
from components.store.execute import execute
from components.store.locks import file_lock
from components.store.spec import StageSpec
from components.store.tracking import Tracking
from pipeline import stage_runner
from pipeline.recipe import build
from pipeline.stage_runner import StageStopped, stage_definition
from pipeline.stages import STAGES
from tests.recipes import small


@pytest.fixture
def here(storage, monkeypatch):
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    return storage


@pytest.fixture
def tracking(here):
    return Tracking(here)


@pytest.fixture
def run(here, tracking):
    """Brings the stage of a definition to completion in this process; returns its token."""

    def token(definition, launch=stage_runner.launch_in_process, **options):
        options = {"storage": here, "tracking": tracking, "launch": launch, **options}
        return stage_runner.run_stage(definition, [], **options).token

    return token


def encoding(**changes):
    recipe = build(small(digits={"max_train_images": 40, "max_val_images": 20, **changes}))
    return stage_definition(recipe.stages["digits"], recipe)


def test_stage_runs_then_is_reused(run, tracking):
    first = run(encoding())
    run_id, _, fingerprint = first.partition("/")
    assert len(fingerprint) == 64
    assert run(encoding()) == first
    assert run(encoding(quality=50)) != first
    assert tracking.find(fingerprint).run_id == run_id


def test_stage_is_done_again_when_asked_or_when_its_output_is_damaged(run, tracking):
    first = run(encoding())
    again = run(encoding(), again=True)
    assert again.split("/")[0] != first.split("/")[0]
    assert again.split("/")[1] == first.split("/")[1]
    for token in (first, again):
        folder = tracking.artifacts(tracking.client.get_run(token.split("/")[0])).folder
        (folder / "manifest.json").write_text("{}")
    third = run(encoding())
    assert third.split("/")[0] not in {first.split("/")[0], again.split("/")[0]}


def test_interrupted_run_is_continued_in_the_same_run(here, run, tracking):
    spec = stage_runner.specify(encoding(), [], "", here.cache)
    run_id = tracking.begin(spec)
    assert run(encoding()).split("/")[0] == run_id


def test_parents_enter_by_fingerprint_and_run(here):
    recipe = build(small())
    what = stage_definition(recipe.stages["adversarial"], recipe)
    tokens = ["run1/" + "a" * 64, "run2/" + "b" * 64]
    spec = stage_runner.specify(what, tokens, "parent", here.cache)
    assert {role: (p.name, p.run_id) for role, p in spec.parents.items()} == {
        "data": ("digits", "run1"),
        "init": ("pretrain", "run2"),
    }
    other = stage_runner.specify(what, ["elsewhere/" + "a" * 64, tokens[1]], "", here.cache)
    assert other.fingerprint == spec.fingerprint
    changed = stage_runner.specify(what, ["run1/" + "c" * 64, tokens[1]], "", here.cache)
    assert changed.fingerprint != spec.fingerprint


def test_stage_without_a_complete_result_is_an_error(here, tracking):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    spec = spec.model_copy(update={"run_id": tracking.begin(spec)})
    with pytest.raises(UserError, match="without a complete result"):
        stage_runner.check(spec, tracking)
    execute(spec, here, lambda job: {})
    assert stage_runner.check(spec, tracking) == spec.run_id


def test_a_run_that_another_pipeline_completes_meanwhile_stays_complete(here, tracking, monkeypatch):
    """Between the search and the claim; the stage must neither run again nor unmark what is finished."""
    spec = stage_runner.specify(encoding(), [], "", here.cache)
    other = spec.model_copy(update={"run_id": tracking.begin(spec)})
    find = Tracking.find

    def slowly(self, fingerprint, deep=True):
        found = find(self, fingerprint, deep)
        if found.state == "interrupted":
            execute(other, here, STAGES["encode"].function())
        return found

    monkeypatch.setattr(Tracking, "find", slowly)
    decision, _ = stage_runner.decide(spec, tracking)
    assert (decision.state, decision.run_id) == ("reused", other.run_id)
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


def test_a_step_that_attached_to_another_job_returns_the_run_that_is_complete(here):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    tracking = Tracking(here)
    theirs = spec.model_copy(update={"run_id": tracking.begin(spec)})
    parent = tracking.open_pipeline_run("p", {}, {})
    ours = spec.model_copy(update={"pipeline_run": parent})
    ours = ours.model_copy(update={"run_id": tracking.begin(ours)})
    execute(theirs, here, lambda job: {})
    assert stage_runner.check(ours, tracking) == theirs.run_id
    assert tracking.stages_of(parent) == {"x": (theirs.run_id, "reused")}


def test_a_step_takes_the_run_that_it_launched_although_another_complete_one_counts_as_newer(here, tracking):
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    ours = spec.model_copy(update={"run_id": tracking.begin(spec)})
    theirs = spec.model_copy(update={"run_id": tracking.begin(spec)})
    for each in (ours, theirs):
        execute(each, here, lambda job: {})
    assert tracking.find("e" * 64).run_id == theirs.run_id
    assert stage_runner.check(ours, tracking) == ours.run_id


def report(folder):
    return json.loads((folder / "digits.json").read_text())


def test_a_failure_is_reported_with_its_cause_its_log_and_whether_the_user_can_fix_it(here, run, tmp_path):
    def refuse(spec, kind, log):
        raise UserError("the images are blue", where="digits", remedy="paint them")

    def crash(spec, kind, log):
        raise RuntimeError("inside")

    for launch, text, user in ((refuse, "digits: the images are blue. paint them.", True), (crash, "inside", False)):
        with pytest.raises((UserError, RuntimeError)):
            run(encoding(), launch, live=tmp_path)
        found = report(tmp_path)
        assert (found["state"], found["error"], found["user"]) == ("failed", text, user)
        assert found["log"].endswith("/no-pipeline/digits.log")


def test_a_stage_that_was_asked_to_end_has_not_failed(run, tmp_path):
    def end(spec, kind, log):
        raise StageStopped

    with pytest.raises(StageStopped):
        run(encoding(), end, live=tmp_path)
    assert report(tmp_path)["state"] == "stopped"


def test_a_stage_waits_while_another_process_works_on_it(here, run, tmp_path):
    """Until that process has ended, or this run is stopped."""
    lock = here.locks / f"{stage_runner.specify(encoding(), [], '', here.cache).fingerprint}.lock"
    stop, ended = threading.Event(), []

    def wait():
        with pytest.raises(StageStopped):
            run(encoding(), live=tmp_path, stop=stop)
        ended.append(True)

    with file_lock(lock):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(1)
        assert report(tmp_path)["state"] == "waiting"
        stop.set()
        thread.join(20)
    assert ended
    assert run(encoding(), live=tmp_path)
