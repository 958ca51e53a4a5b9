"""A run on this machine that is stopped or killed: nothing that it started lives on, and the next start goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: endless
seed: 1
stages:
  digits: {kind: encode, source: digits, max_short_side: 32, mode: raw, max_train_images: 64, max_val_images: 16}
  pretrain:
    data: digits
    model: {name: convnext_micro, stem: patch}
    resolution: 32
    epochs: 100000
    warmup_epochs: 1
    batch_size: 32
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "endless.yaml").write_text(RECIPE)
    return folder


class Run:
    """`robustrain run` of the endless recipe, brought to the point where it trains."""

    def __init__(self, folder):
        self.home = folder / "home"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ROBUSTRAIN_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_RUN_ID": "a-run-of-somebody-else",
        }
        command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "endless.yaml")]
        self.before = set(self.home.glob("live/*"))
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True)
        self.wait_for(lambda: self.report("pretrain").get("phase") == "train")
        self.all = self.started()

    def started(self):
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if alive(p)]

    def forkserver(self):
        """The preloaded parent of the stages; they have its command line, but not its parent."""
        return next(p for p in psutil.Process(self.process.pid).children() if "forkserver" in " ".join(p.cmdline()))

    def report(self, stage):
        [folder] = set(self.home.glob("live/*")) - self.before or [self.home]
        try:
            return json.loads((folder / f"{stage}.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def wait_for(self, condition, seconds=180):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.communicate()
            try:
                if condition():
                    return
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.1)
        raise AssertionError("it did not come so far")

    def left(self, seconds):
        """What still lives after so many seconds; it is killed then."""
        end = time.monotonic() + seconds
        while (found := [p for p in self.all if alive(p)]) and time.monotonic() < end:
            time.sleep(0.05)
        for process in found:
            process.kill()
        return found


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_every_process_in_time_and_the_next_start_goes_on(house):
    """The claim is a time: five seconds."""
    first = Run(house)
    began = time.monotonic()
    first.process.send_signal(signal.SIGINT)
    out, _ = first.process.communicate(timeout=60)
    assert first.left(1) == []
    assert time.monotonic() - began < 5
    assert first.process.returncode == 130
    assert "Start again to go on" in out
    second = Run(house)
    assert second.report("digits")["state"] == "reused"
    second.process.send_signal(signal.SIGINT)
    out, _ = second.process.communicate(timeout=60)
    assert "digits: reused from run " in out
    assert second.left(1) == []
    assert states(house) == {"digits": {"complete"}, "pretrain": {"failed"}}


def test_killing_the_command_ends_everything(house):
    run = Run(house)
    run.process.kill()
    run.process.wait()
    assert run.left(20) == []


def test_killing_the_parent_of_the_stages_ends_everything_in_one_message(house):
    run = Run(house)
    run.forkserver().kill()
    _, printed = run.process.communicate(timeout=60)
    assert run.process.returncode == 1
    assert printed.startswith("error: the pipeline stopped before any stage failed: ")
    assert run.left(1) == []


def states(house):
    """Stage -> states of its runs in MLflow; each stage has one, continued again and again, and none is adopted."""
    from components.store.settings import StorageSettings
    from components.store.tracking import Tracking

    tracking = Tracking(StorageSettings.from_environment({}, home=house / "home"))
    runs = tracking.client.search_runs([tracking.experiment_id], "tags.robustrain = 'stage'")
    assert len(runs) == 2
    return {run.data.tags["stage"]: {run.data.tags["stage_state"]} for run in runs}
