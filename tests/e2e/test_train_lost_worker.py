"""A worker process that is killed in the middle of an epoch costs the work since the last checkpoint and no bits."""

import json
import os
import signal
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from components.errors import Terminated
from tests.small_training import NETWORK

CONFIG = {
    "data": "digits",
    "init": "random",
    "model": NETWORK,
    "resolution": 32,
    "epochs": 8,
    "batch_size": 16,
    "warmup_epochs": 0.5,
    "ema_decay": 0.5,
    "mixup": 0.8,
    "attack": {"norm": "Linf", "eps": 0.1, "steps": 3},
    "validation": {"every_epochs": 1, "max_images": 16, "fraction": 0.15, "steps": 2},
    "device": "cpu",
    "loader": "native",
    "num_threads": 1,
    "num_workers": "1-2",
    "checkpoint_interval_s": 0,
}
PER_EPOCH = 24


class Killer(threading.Thread):
    """As soon as a checkpoint from inside an epoch is on the disk, kills one training worker with SIGKILL.

    With `ask` the stage's own process gets SIGTERM instead, as from a cluster that takes a machine back.
    """

    def __init__(self, home, ask=False):
        super().__init__(daemon=True)
        self.home, self.ask, self.killed, self.checkpoint, self.over = home, ask, "", "", False

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *raised):
        self.over = True
        self.join()

    def run(self):
        while not self.over and not self.killed:
            for place in self.home.rglob("checkpoints/step-*/manifest.json"):
                if 2 <= int(place.parent.name.split("-")[1]) % PER_EPOCH <= PER_EPOCH - 4:
                    self._kill(place.parent.name)
                    break
            time.sleep(0.02)

    def _kill(self, checkpoint):
        if self.ask:
            self.killed, self.checkpoint = "asked to end", checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for process in psutil.Process().children(recursive=True):
            title = " ".join(process.cmdline()[:1])
            if title.startswith("ray::") and "TrainWorker" in title:
                process.send_signal(signal.SIGKILL)
                self.killed, self.checkpoint = title, checkpoint
                return


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_a_request_to_end_cost_no_bits(run_stage, storage, monkeypatch, capfd, caplog):
    """One test, because each Ray costs half a minute: left alone; with a killed worker; asked to end and continued."""
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    data = run_stage(
        "encode",
        {"source": "digits", "max_short_side": 32, "mode": "raw", "max_train_images": 400, "max_val_images": 20},
    )
    calm = run_stage("adversarial", CONFIG, {"data": data})

    with Killer(storage.home) as killer:
        struck = run_stage("adversarial", CONFIG, {"data": data})
    assert killer.killed, "no worker was killed: the test shows nothing"
    assert "goes on" in caplog.text, "the driver logs in this process"
    assert "continuing from epoch" in "".join(capfd.readouterr()), "the messages of the workers come through Ray"
    _same(struck, calm)

    with Killer(storage.home, ask=True) as killer, pytest.raises(Terminated):
        run_stage("adversarial", CONFIG, {"data": data})
    assert "continuing from epoch" not in "".join(capfd.readouterr())
    _same(run_stage("adversarial", CONFIG, {"data": data}), calm)
    assert "continuing from epoch" in "".join(capfd.readouterr())


def _same(one, other):
    timed = ("images_per_s", "data_wait")
    histories = [json.loads(run.path("history.json").read_text()) for run in (one, other)]
    plain = [[{k: v for k, v in entry.items() if k not in timed} for entry in history] for history in histories]
    assert plain[0] == plain[1]
    weights = [load_file(run.path("model/weights.safetensors")) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name
