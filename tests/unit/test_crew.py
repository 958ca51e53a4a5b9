"""The crew that works ahead: every stage after its parents, side by side, the longest way first, no start after a failure."""

import subprocess
import sys
import threading

import pytest

from components.errors import UserError
from components.launch.warm import CallFailed
from pipeline import crew as rooms
from pipeline.handover import hand_over, handing_over, take
from pipeline.recipe import build
from tests.recipes import small

EVALUATION = {"model": "adversarial", "num_images": 10, "threats": [{"eps": 0.1, "attack": "apgd-ce"}]}


def recipe(**changes):
    document = small(**changes)
    document["stages"]["evaluate"] = EVALUATION
    document["stages"]["evaluate-clean"] = {**EVALUATION, "model": "pretrain"}
    return build(document)


def test_every_stage_comes_after_its_parents_and_gets_their_tokens(tmp_path):
    chosen, seen = recipe(), {}

    def bring(name, parents):
        seen[name] = parents
        return f"run-of-{name}/print"

    rooms.Crew(chosen, tmp_path, bring, lanes=2)
    for name, stage in chosen.stages.items():
        assert take(tmp_path, name) == f"run-of-{name}/print"
        assert seen[name] == [f"run-of-{parent}/print" for parent in stage.parents.values()]


def test_stages_that_do_not_need_each_other_run_side_by_side(tmp_path):
    both = threading.Barrier(2, timeout=20)

    def bring(name, parents):
        if name in ("adversarial", "evaluate-clean"):
            both.wait()
        return name

    rooms.Crew(recipe(), tmp_path, bring, lanes=2)
    assert take(tmp_path, "evaluate-clean") == "evaluate-clean"
    assert take(tmp_path, "adversarial") == "adversarial"


def test_stages_that_need_no_work_are_handed_on_at_once(tmp_path):
    begun = []

    def bring(name, parents):
        begun.append((name, parents))
        return name

    known = {"digits": "run1/a", "pretrain": "run2/b", "adversarial": "run3/c"}
    rooms.Crew(recipe(), tmp_path, bring, lanes=1, tokens=known)
    assert [take(tmp_path, name) for name in known] == list(known.values())
    assert take(tmp_path, "evaluate-clean") == "evaluate-clean"
    assert take(tmp_path, "evaluate") == "evaluate"
    assert sorted(begun) == [("evaluate", ["run3/c", "run1/a"]), ("evaluate-clean", ["run2/b", "run1/a"])]


def test_one_lane_takes_the_longest_way_first(tmp_path):
    order = []

    def bring(name, parents):
        order.append(name)
        return name

    rooms.Crew(recipe(), tmp_path, bring, lanes=1)
    for name in recipe().stages:
        take(tmp_path, name)
    assert order.index("adversarial") < order.index("evaluate-clean")


def test_after_a_failure_nothing_new_begins_and_the_cause_is_handed_on(tmp_path):
    begun = []

    def bring(name, parents):
        begun.append(name)
        if name == "pretrain":
            raise UserError("the images are blue", where="pretrain", remedy="paint them")
        return name

    working = rooms.Crew(recipe(), tmp_path, bring, lanes=1)
    with pytest.raises(UserError, match=r"pretrain: the images are blue. paint them."):
        take(tmp_path, "pretrain")
    assert working.failed == "pretrain"
    assert "adversarial" not in begun


def ended(folder, names):
    """What every stage ended in, asked for in the recipe's order as KFP does; a thread, so that a hang is a failure."""
    found = {}

    def ask():
        for name in names:
            try:
                found[name] = take(folder, name)
            except (UserError, CallFailed) as error:
                found[name] = f"{type(error).__name__}: {error}"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    return found


def test_after_a_failure_no_stage_is_waited_for_in_vain(tmp_path):
    """Two lanes: one fails while the other works; what never begins ends in the same words, what works in its own."""
    failed, begun = threading.Event(), []

    def bring(name, parents):
        begun.append(name)
        if name == "evaluate-clean":
            failed.set()
            raise UserError("the images are blue", where=name, remedy="paint them")
        if name == "adversarial":
            assert failed.wait(20)
        return name

    chosen = recipe()
    rooms.Crew(chosen, tmp_path, bring, lanes=2)
    blue = "Said: evaluate-clean: the images are blue. paint them."
    assert ended(tmp_path, chosen.stages) == {
        "digits": "digits",
        "pretrain": "pretrain",
        "adversarial": "adversarial",
        "evaluate": blue,
        "evaluate-clean": blue,
    }
    assert "evaluate" not in begun


def test_a_result_that_cannot_be_handed_over_is_a_failure(tmp_path, monkeypatch):
    def full(folder, name, token):
        if name == "pretrain":
            raise OSError(28, "No space left on device")
        hand_over(folder, name, token)

    monkeypatch.setattr(rooms, "hand_over", full)
    chosen = recipe()
    rooms.Crew(chosen, tmp_path, lambda name, parents: name, lanes=2)
    found = ended(tmp_path, chosen.stages)
    assert found.pop("digits") == "digits"
    assert set(found) == set(chosen.stages) - {"digits"}
    assert set(found.values()) == {"CallFailed: [Errno 28] No space left on device"}


def test_the_run_ends_where_not_even_a_failure_can_be_handed_over(tmp_path, monkeypatch):
    said, told = [], threading.Event()

    def full(*what):
        raise OSError(28, "No space left on device")

    def give_up(cause):
        said.append(cause)
        told.set()

    monkeypatch.setattr(rooms, "hand_over", full)
    monkeypatch.setattr(rooms, "hand_failure", full)
    rooms.Crew(recipe(), tmp_path, lambda name, parents: name, lanes=1, give_up=give_up)
    assert told.wait(20)
    assert said[0].startswith("digits: [Errno 28] No space left on device")


def test_giving_up_ends_a_process_with_all_its_threads():
    code = "import threading, pipeline.crew as c; threading.Thread(target=c.end_this_process, args=('full',)).start(); threading.Event().wait()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error: full\n")


def test_a_step_whose_run_was_killed_does_not_wait(tmp_path):
    with handing_over(tmp_path):
        asking = threading.Thread(target=lambda: said.append(ended(tmp_path, ["digits"])), daemon=True)
        said = []
        asking.start()
        asking.join(0.5)
        assert asking.is_alive()
    asking.join(20)
    assert said == [{"digits": "CallFailed: the run that this step belongs to has ended"}]


def test_a_crash_is_not_handed_on_as_the_persons_mistake(tmp_path):
    def bring(name, parents):
        raise CallFailed("its process was killed")

    rooms.Crew(recipe(), tmp_path, bring, lanes=1)
    with pytest.raises(CallFailed, match="killed"):
        take(tmp_path, "digits")


def test_lanes_leave_a_ray_and_a_gpu_to_one_stage(monkeypatch):
    monkeypatch.setattr(rooms, "available_cores", lambda: 8)
    monkeypatch.setattr(rooms, "gpus_here", lambda: 0)
    assert rooms.lanes_for(recipe()) == 2
    assert rooms.lanes_for(recipe(), wanted=5) == 5
    assert rooms.lanes_for(recipe(adversarial={"num_workers": 2})) == 1
    monkeypatch.setattr(rooms, "gpus_here", lambda: 1)
    assert rooms.lanes_for(recipe()) == 1
    monkeypatch.setattr(rooms, "gpus_here", lambda: 0)
    monkeypatch.setattr(rooms, "available_cores", lambda: 1)
    assert rooms.lanes_for(recipe()) == 1
