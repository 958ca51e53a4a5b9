"""The scheduler: every stage after its parents, side by side, the longest path first, no start after a failure."""

import threading

import pytest

from components.errors import UserError
from pipeline import scheduler as module
from pipeline.recipe import build
from pipeline.scheduler import Scheduler, critical_path, max_parallel
from tests.recipes import small

EVALUATION = {"model": "adversarial", "num_images": 10, "threats": [{"eps": 0.1, "attack": "apgd-ce"}]}


def recipe(**changes):
    document = small(**changes)
    document["stages"]["evaluate"] = EVALUATION
    document["stages"]["evaluate-clean"] = {**EVALUATION, "model": "pretrain"}
    return build(document)


def ended(chosen, run_stage, parallel, tokens=None):
    """A scheduler whose stages have ended."""
    scheduler = Scheduler(chosen, run_stage, parallel, tokens)
    scheduler.start()
    assert scheduler.wait(20), "it hangs"
    return scheduler


def test_every_stage_comes_after_its_parents_and_gets_their_tokens():
    chosen, seen = recipe(), {}

    def run_stage(name, parents):
        seen[name] = parents
        return f"run-of-{name}/print"

    scheduler = ended(chosen, run_stage, 2)
    assert scheduler.tokens == {name: f"run-of-{name}/print" for name in chosen.stages}
    for name, stage in chosen.stages.items():
        assert seen[name] == [f"run-of-{parent}/print" for parent in stage.parents.values()]


def test_stages_that_do_not_need_each_other_run_side_by_side():
    both = threading.Barrier(2, timeout=20)

    def run_stage(name, parents):
        if name in ("adversarial", "evaluate-clean"):
            both.wait()
        return name

    assert ended(recipe(), run_stage, 2).failed == ""


def test_no_more_stages_run_at_once_than_allowed():
    lock, running, most = threading.Lock(), set(), []

    def run_stage(name, parents):
        with lock:
            running.add(name)
            most.append(len(running))
        threading.Event().wait(0.02)
        with lock:
            running.discard(name)
        return name

    ended(recipe(), run_stage, 1)
    assert max(most) == 1


def test_stages_that_need_no_work_are_not_run():
    begun = []

    def run_stage(name, parents):
        begun.append((name, parents))
        return name

    known = {"digits": "run1/a", "pretrain": "run2/b", "adversarial": "run3/c"}
    scheduler = ended(recipe(), run_stage, 1, known)
    assert scheduler.tokens == {**known, "evaluate-clean": "evaluate-clean", "evaluate": "evaluate"}
    assert sorted(begun) == [("evaluate", ["run3/c", "run1/a"]), ("evaluate-clean", ["run2/b", "run1/a"])]


def test_the_longest_path_goes_first():
    order = []

    def run_stage(name, parents):
        order.append(name)
        return name

    ended(recipe(), run_stage, 1)
    assert order == ["digits", "pretrain", "adversarial", "evaluate", "evaluate-clean"]


def test_the_critical_path_adds_up_what_follows():
    chosen = recipe()
    alone = {name: stage.kind.seconds(stage.config) for name, stage in chosen.stages.items()}
    path = critical_path(chosen)
    assert path["evaluate"] == alone["evaluate"] == pytest.approx(10 * 0.15)
    assert path["adversarial"] == pytest.approx(alone["adversarial"] + path["evaluate"])
    assert path["pretrain"] == pytest.approx(alone["pretrain"] + path["adversarial"])
    assert alone["adversarial"] == pytest.approx(alone["pretrain"] * 3), "two attack steps and the training step"


def test_after_a_failure_nothing_new_begins_and_the_cause_is_kept():
    begun = []

    def run_stage(name, parents):
        begun.append(name)
        if name == "pretrain":
            raise UserError("the images are blue", where="pretrain", remedy="paint them")
        return name

    scheduler = ended(recipe(), run_stage, 1)
    assert (scheduler.failed, str(scheduler.error)) == ("pretrain", "pretrain: the images are blue. paint them.")
    assert begun == ["digits", "pretrain"]


def test_a_failure_beside_a_stage_that_works_is_the_first_and_its_error_stays():
    """Two threads: one stage fails while the other works; what works may end, and nothing follows it."""
    failed, begun = threading.Event(), []

    def run_stage(name, parents):
        begun.append(name)
        if name == "evaluate-clean":
            failed.set()
            raise UserError("the images are blue", where=name, remedy="paint them")
        if name == "adversarial":
            assert failed.wait(20)
            threading.Event().wait(0.2)
        return name

    scheduler = ended(recipe(), run_stage, 2)
    assert scheduler.failed == "evaluate-clean"
    assert sorted(scheduler.tokens) == ["adversarial", "digits", "pretrain"]
    assert "evaluate" not in begun


def test_waiting_is_limited_in_time():
    release = threading.Event()

    def run_stage(name, parents):
        release.wait(20)
        return name

    scheduler = Scheduler(recipe(), run_stage, 2)
    scheduler.start()
    assert not scheduler.wait(0.05)
    release.set()
    assert scheduler.wait(20)


def test_one_stage_at_a_time_where_it_needs_a_ray_or_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    monkeypatch.setattr(module, "num_gpus", lambda: 0)
    assert max_parallel(recipe()) == 2
    assert max_parallel(recipe(), jobs=5) == 5
    assert max_parallel(recipe(adversarial={"num_workers": 2})) == 1
    monkeypatch.setattr(module, "num_gpus", lambda: 1)
    assert max_parallel(recipe()) == 1
    monkeypatch.setattr(module, "num_gpus", lambda: 0)
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    assert max_parallel(recipe()) == 1
