"""The compiled pipeline, run by KFP's own local runner: the steps do the work on what KFP hands from task to task."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: four
seed: 1
stages:
  digits: {kind: encode, source: digits, max_short_side: 32, mode: raw, max_train_images: 64, max_val_images: 16}
  pretrain: &training
    data: digits
    model: {name: convnext_micro, stem: patch}
    resolution: 32
    epochs: 1
    warmup_epochs: 0
    batch_size: 32
  adversarial: {<<: *training, init: pretrain, model: null, attack: {norm: Linf, eps: 0.1}}
  evaluate: {model: adversarial, num_images: 8, threats: [{norm: Linf, eps: 0.1, attack: apgd-ce}]}
"""
STAGES = ["digits", "pretrain", "adversarial", "evaluate"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kfp")
    (folder / "four.yaml").write_text(RECIPE)
    return folder


def start(folder, home, *options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ROBUSTRAIN_HOME": str(folder / home),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_RUN_ID": "a-run-of-somebody-else",
    }
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "four.yaml"), *options]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder, home, *options):
    process = start(folder, home, *options)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def by_kfp(folder):
    status, out, err = run(folder, "kfp", "--runner", "kfp")
    assert status == 0, out + err
    return out


def runs(home):
    """Stage -> (folder of its artifacts, run id, fingerprint)."""
    from components.store.settings import StorageSettings
    from components.store.tracking import Tracking

    tracking = Tracking(StorageSettings.from_environment({}, home=home))
    (pipeline, *_) = tracking.last_pipeline_runs()
    found = {}
    for name, (run_id, _) in tracking.stages_of(pipeline["run_id"]).items():
        stage = tracking.client.get_run(run_id)
        found[name] = tracking.artifacts(stage).folder, run_id, stage.data.tags["stage_fingerprint"]
    return found


def test_every_step_gets_its_parents_from_kfp(by_kfp, folder):
    stages = runs(folder / "kfp")
    assert sorted(stages) == sorted(STAGES)
    for name, parents in {"pretrain": {"data"}, "adversarial": {"data", "init"}, "evaluate": {"data", "model"}}.items():
        spec = json.loads((stages[name][0] / "spec.json").read_text())
        assert set(spec["parents"]) == parents
        for parent in spec["parents"].values():
            _, run_id, fingerprint = stages[parent["name"]]
            assert (parent["run_id"], parent["fingerprint"]) == (run_id, fingerprint)
    log = max((folder / "kfp" / "live").iterdir()) / "pipeline.log"
    tokens = {f"'{run_id}/{fingerprint}'" for _, run_id, fingerprint in stages.values()}
    assert all(token in log.read_text() for token in tokens), "KFP's outputs are the stages' tokens"


def test_both_runners_have_the_same_results_and_reuse_each_others_stages(by_kfp, folder):
    status, out, err = run(folder, "local")
    assert status == 0, out + err
    ours, theirs = runs(folder / "local"), runs(folder / "kfp")
    for name in STAGES:
        assert ours[name][2] == theirs[name][2]
    for name in ("pretrain", "adversarial"):
        assert digest(ours[name][0]) == digest(theirs[name][0])
    status, out, err = run(folder, "local", "--runner", "kfp")
    assert status == 0, out + err
    assert all(f"{name}: reused from run {ours[name][1][:8]}" in out for name in STAGES)


def digest(artifacts):
    return hashlib.sha256((artifacts / "model" / "weights.safetensors").read_bytes()).hexdigest()


def test_kfp_runs_a_named_stage_again(by_kfp, folder):
    before = runs(folder / "kfp")
    status, out, err = run(folder, "kfp", "--runner", "kfp", "--again", "digits")
    assert status == 0, out + err
    after = runs(folder / "kfp")
    assert after["digits"][1] != before["digits"][1]
    assert after["pretrain"][1] == before["pretrain"][1]


def test_a_failing_step_is_one_message_with_its_cause(by_kfp, folder, tmp_path):
    for folder_of_class in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / folder_of_class).mkdir(parents=True)
        (tmp_path / "images" / folder_of_class / "1.png").write_bytes(b"not an image")
    status, _, err = run(folder, "kfp", "--runner", "kfp", "--set", f"digits.source={tmp_path / 'images'}")
    assert status == 2
    [error, log] = err.splitlines()
    assert error.startswith("error: stage digits failed: ")
    assert str(tmp_path / "images/train/a/1.png") in error
    assert log.startswith("log: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_command_ends_kfp_and_its_step(by_kfp, folder, number):
    process = start(folder, "kfp", "--runner", "kfp", "--set", "pretrain.epochs=100000")
    assert until(lambda: newest_phase(folder / "kfp", "pretrain") == "train" or process.poll() is not None, 200)
    started = [p for p in psutil.Process(process.pid).children(recursive=True) if alive(p)]
    assert any("kfp.dsl.executor_main" in " ".join(p.cmdline()) for p in started)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert until(lambda: not any(alive(p) for p in started), 1 if number == signal.SIGINT else 10)


def newest_phase(home, stage):
    try:
        return json.loads((max((home / "live").iterdir()) / f"{stage}.json").read_text()).get("phase")
    except (OSError, json.JSONDecodeError):
        return None


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
