"""The runner on this machine: what is reused, run and reported, and how a failure ends the run. Children are replaced
by calls in the runner's own threads."""

import os
import signal
import threading
import time

import pytest

from components.errors import UserError
from components.launch.child_process import ChildFailed, Children, ChildStopped, ForkserverDied
from components.store.progress import new_live_folder
from components.store.tracking import Tracking
from pipeline import local
from pipeline.recipe import build

pytestmark = pytest.mark.slow  # whole runs, with processes of their own

DIGITS = {
    "kind": "encode",
    "source": "digits",
    "max_short_side": 32,
    "mode": "raw",
    "max_train_images": 20,
    "max_val_images": 10,
}


@pytest.fixture
def recipe():
    return build({"name": "two", "seed": 1, "stages": {"digits": DIGITS, "more": {**DIGITS, "quality": 50}}})


@pytest.fixture
def launched(storage, monkeypatch):
    """Names of the stages that were launched; `work` (name -> function) replaces the work of some."""
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    seen = Launched()

    def run(self, function, spec, *, log, nice):
        name = local.StageSpec.model_validate_json(spec).name
        seen.append(name)
        seen.work.get(name, lambda children: function(spec))(self)

    monkeypatch.setattr(Children, "run", run)
    monkeypatch.setattr(local, "start_forkserver", lambda log, modules: seen.preloaded.append(modules))
    return seen


class Launched(list):
    def __init__(self):
        super().__init__()
        self.work, self.preloaded = {}, []


def run(recipe, storage, **options):
    return local.run_here(recipe, storage, watch=options.pop("watch", lambda reports: None), **options)


def states(outcome):
    return {name: report["state"] for name, report in outcome.stages.items()}


def last_state(storage):
    return Tracking(storage).last_pipeline_runs()[0]["state"]


def test_all_stages_are_run_then_reused_without_any_other_process(recipe, storage, launched):
    first = run(recipe, storage)
    assert first.ok
    assert states(first) == {"digits": "complete", "more": "complete"}
    assert sorted(launched) == ["digits", "more"]
    assert launched.preloaded
    launched.clear()
    launched.preloaded.clear()
    second = run(recipe, storage)
    assert second.ok
    assert states(second) == {"digits": "reused", "more": "reused"}
    assert second.stages["digits"]["run_id"] == first.stages["digits"]["run_id"]
    assert second.stages["digits"]["origin"] == first.run_id
    assert (launched, launched.preloaded) == ([], [])
    assert last_state(storage) == "complete"
    assert Tracking(storage).stages_of(second.run_id)["more"] == (first.stages["more"]["run_id"], "reused")


def test_again_runs_a_finished_stage_once_more(recipe, storage, launched):
    run(recipe, storage)
    launched.clear()
    outcome = run(recipe, storage, again=("more",))
    assert states(outcome) == {"digits": "reused", "more": "complete"}
    assert launched == ["more"]


def test_a_failure_asks_the_other_stages_to_end_and_is_the_one_message(recipe, storage, launched):
    stopped, working = threading.Event(), threading.Event()

    def works(children):
        working.set()
        while not children._stopped:
            time.sleep(0.01)
        stopped.set()
        raise ChildStopped

    def fails(children):
        assert working.wait(20)
        raise UserError("the images are blue", where="digits", remedy="paint them")

    launched.work = {"digits": fails, "more": works}
    outcome = run(recipe, storage, jobs=2)
    assert not outcome.ok
    assert stopped.is_set()
    assert states(outcome) == {"digits": "failed", "more": "stopped"}
    failed = outcome.failed()
    assert (failed["stage"], failed["user"]) == ("digits", True)
    assert failed["error"] == "digits: the images are blue. paint them."
    assert last_state(storage) == "failed"


def test_a_killed_stage_is_no_mistake_of_the_user(recipe, storage, launched):
    def killed(children):
        raise ChildFailed("its process was ended by SIGKILL; the log is x")

    launched.work = {"digits": killed}
    failed = run(recipe, storage, jobs=1).failed()
    assert (failed["user"], failed["error"]) == (False, "its process was ended by SIGKILL; the log is x")


def test_the_death_of_the_forkserver_is_no_stages_failure(recipe, storage, launched):
    def died(children):
        raise ForkserverDied("the process that starts the stages was killed")

    launched.work = {"digits": died}
    outcome = run(recipe, storage, jobs=1)
    assert outcome.failed() is None
    assert (outcome.ok, outcome.user, outcome.cause) == (False, False, "the process that starts the stages was killed")


def test_an_error_before_any_stage_is_the_cause_and_its_trace_is_in_the_log(recipe, storage, launched):
    (storage.home / "mlflow.db").write_bytes(b"no data base" * 1000)
    outcome = run(recipe, storage)
    assert (outcome.ok, outcome.user, outcome.run_id) == (False, True, "")
    assert "move the file away" in outcome.cause
    assert "Traceback" in outcome.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_stages_and_becomes_an_interrupt(recipe, storage, launched, number):
    ended = threading.Event()

    def works(children):
        os.kill(os.getpid(), number)
        while not children._stopped:
            time.sleep(0.01)
        ended.set()
        raise ChildStopped

    launched.work = {"digits": works}
    outside = signal.signal(number, signal.default_int_handler)  # `nohup` may have set SIGHUP to be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run(recipe, storage, jobs=1)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    assert ended.wait(20)
    launched.work = {}
    assert states(run(recipe, storage)) == {"digits": "complete", "more": "complete"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_ends_the_run(recipe, storage, launched):
    """An exception that a handler raises inside a finaliser, for one, is only printed."""

    def interrupted_in_a_finaliser(reports):
        class Finaliser:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)

        Finaliser()

    with pytest.raises(KeyboardInterrupt):
        run(recipe, storage, watch=interrupted_in_a_finaliser)


def test_an_unknown_runner_is_refused_with_its_name(recipe, storage):
    with pytest.raises(UserError, match=r"--runner: unknown runner, did you mean 'kfp'\? \(got 'kpf'\)"):
        run(recipe, storage, runner="kpf")


def test_a_second_run_in_the_same_home_is_refused(recipe, storage, launched):
    def second(reports):
        with pytest.raises(UserError, match=f"process {os.getpid()} is already running a pipeline here"):
            run(recipe, storage)

    assert run(recipe, storage, watch=second).ok


def test_children_get_the_run_and_an_equal_share_of_the_cores(recipe, storage, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setenv("ROBUSTRAIN_MARK", "kept")
    monkeypatch.setenv("MLFLOW_RUN_ID", "somebody's")
    environment = local._Run(recipe, storage, (), 2, tmp_path)._environment()
    assert environment["ROBUSTRAIN_CORES"] == "4"
    assert environment["ROBUSTRAIN_LIVE"] == str(tmp_path)
    assert environment["ROBUSTRAIN_MARK"] == "kept"
    assert environment.items() >= storage.environment().items()
    assert "MLFLOW_RUN_ID" not in environment


def test_runs_whose_clock_shows_the_same_second_have_folders_of_their_own(recipe, storage, launched, monkeypatch):
    """The clock was set back, or summer time ended: a failed run must not find the reports of a complete one."""
    monkeypatch.setattr("time.strftime", lambda pattern, *moment: "20261025-023000")
    first = run(recipe, storage)
    assert first.ok

    def fail(children):
        raise ChildFailed("boom")

    launched.work["more"] = fail
    second = run(recipe, storage, again=("digits", "more"))
    assert not second.ok
    assert second.stages["more"]["state"] == "failed"
    assert [first.log.parent.name, second.log.parent.name] == ["20261025-023000", "20261025-023000-2"]
    tracking = Tracking(storage)
    assert [each["state"] for each in tracking.last_pipeline_runs()] == ["failed", "complete"]


def test_live_folders_of_old_runs_are_removed_and_nothing_else(tmp_path):
    live = tmp_path / "live"
    for name in [f"20260101-0000{second:02d}" for second in range(30)] + ["mine"]:
        (live / name).mkdir(parents=True)
        (live / name / "pipeline.log").touch()
    new = new_live_folder(tmp_path)
    left = {path.name for path in live.iterdir()}
    assert left == {new.name, "mine"} | {f"20260101-0000{second:02d}" for second in range(11, 30)}
