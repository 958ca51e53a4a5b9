"""The whole pipeline on this machine, through the runner, its children and MLflow; then again, changed, broken, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = str(Path(__file__).parent / "tiny.yaml")
STAGES = [
    "encode",
    "encode-shapes",
    "pretrain",
    "convstem",
    "adversarial",
    "radius",
    "transfer",
    "evaluate",
    "sweep",
    "promote",
    "report",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def environment(home):
    return {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTRAIN_HOME": str(home), "OMP_NUM_THREADS": "1"}


def robustrain(home, *arguments):
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), cwd=ROOT, check=False)


def printed(done):
    """Stage -> last thing printed about it."""
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return {name: text for name, _, text in lines if name in STAGES and text.startswith(("done", "reused", "started"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e") / "home"


@pytest.fixture(scope="module")
def first(home):
    done = robustrain(home, "run", TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_stage_is_done_and_the_result_is_shown(first, home):
    assert {name: text.split(",")[0] for name, text in printed(first).items()} == dict.fromkeys(STAGES, "done")
    assert "mlflow ui --backend-store-uri" in first.stdout
    report = next(line.split()[-1] for line in reversed(first.stdout.splitlines()) if line.startswith("report:"))
    page = Path(report).read_text()
    assert "</html>" in page
    assert "Traceback" not in first.stdout + first.stderr


def test_the_run_keeps_the_recipes_order(first, home):
    """Tables and the page follow it."""
    from components.store.settings import StorageSettings
    from components.store.tracking import Tracking
    from pipeline.recipe import load

    tracking = Tracking(StorageSettings.from_environment({}, home=home))
    (run,) = tracking.client.search_runs([tracking.experiment_id], "tags.robustrain = 'pipeline'")
    assert list(tracking.recipe_of(run.info.run_id)["stages"]) == list(load(TINY).stages)


def test_results_have_the_documented_form(first, home):
    rows = json.loads(robustrain(home, "results", "--json").stdout)
    keys = [
        "stage",
        "model",
        "stem",
        "dataset",
        "resolution",
        "norm",
        "eps",
        "attack",
        "n",
        "clean_accuracy",
        "robust_accuracy",
        "interval",
    ]
    assert all(set(keys) <= set(row) for row in rows)
    found = {(r["stage"], r["resolution"], r["norm"], r["eps"]) for r in rows}
    assert found == {("adversarial", 32, "Linf", 0.1), ("adversarial", 32, "L2", 1.0), ("adversarial", 64, "Linf", 0.1)}
    for row in rows:
        low, high = row["interval"]
        assert 0 <= low <= row["robust_accuracy"] <= high <= 1
        assert row["robust_accuracy"] <= row["clean_accuracy"] <= 1
        assert (row["stem"], row["dataset"], row["attack"], row["n"]) == ("conv", "digits", "APGD-CE", 8)


def test_second_run_reuses_every_stage_and_says_from_which_run(first, home):
    done = robustrain(home, "run", TINY)
    assert done.returncode == 0
    assert set(printed(done)) == set(STAGES)
    assert all(text.startswith("reused from run ") and "of pipeline run " in text for text in printed(done).values())


def test_change_of_one_field_runs_exactly_what_plan_said(first, home):
    change = ("--set", "radius.epochs=2")
    planned = json.loads(robustrain(home, "plan", TINY, "--json", *change).stdout)
    to_run = {stage["name"] for stage in planned if stage["action"] == "run"}
    assert to_run == {"radius", "report"}
    done = robustrain(home, "run", TINY, *change)
    assert done.returncode == 0
    assert {name for name, text in printed(done).items() if text.startswith("done")} == to_run


def test_failing_stage_is_one_message_with_cause_and_log(first, home, tmp_path):
    for folder_of_class in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / folder_of_class).mkdir(parents=True)
        (tmp_path / "images" / folder_of_class / "1.png").write_bytes(b"not an image")
    done = robustrain(home, "run", TINY, "--set", f"encode.source={tmp_path / 'images'}")
    assert done.returncode == 2
    [error, log] = done.stderr.splitlines()
    assert error.startswith("error: stage encode failed: ")
    assert str(tmp_path / "images/train") in error
    assert Path(log.removeprefix("log: ")).is_file()
    again = robustrain(home, "plan", TINY, "--json", "--set", f"encode.source={tmp_path / 'images'}")
    assert {s["name"]: s["action"] for s in json.loads(again.stdout)}["encode"] == "continue"


def test_second_run_at_the_same_time_is_refused_and_ctrl_c_ends_everything(first, home):
    command = [sys.executable, "-m", "pipeline.cli", "run", TINY, "--set", "adversarial.epochs=500"]
    running = subprocess.Popen(command, env=environment(home), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    live = wait_for(lambda: newest_report(home, "adversarial", "train"), running)
    assert live
    refused = robustrain(home, "run", TINY)
    assert refused.returncode == 2
    assert f"process {running.pid} is already running a pipeline here" in refused.stderr
    started = descendants(running.pid)
    assert len(started) >= 3
    stopped = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert [pid for pid in started if alive(pid)] == []
    assert time.monotonic() - stopped < 5  # the claim is a time
    assert running.returncode == 130
    assert "Start again to go on" in out
    again = robustrain(home, "plan", TINY, "--json", "--set", "adversarial.epochs=500")
    actions = {stage["name"]: stage["action"] for stage in json.loads(again.stdout)}
    assert {name for name, action in actions.items() if action == "reuse"} == {
        "encode",
        "encode-shapes",
        "pretrain",
        "convstem",
    }
    assert actions["adversarial"] == "continue"


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if found := condition():
            return found
        time.sleep(0.1)
    return None


def newest_report(home, stage, phase):
    folder = max((home / "live").iterdir())
    try:
        report = json.loads((folder / f"{stage}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return report if report.get("phase") == phase else None


def parents():
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                table[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return table


def descendants(pid):
    table, found = parents(), [pid]
    for parent in found:
        found += [child for child, of in table.items() if of == parent]
    return found[1:]


def alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
