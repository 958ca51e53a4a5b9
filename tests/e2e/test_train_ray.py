"""The same training in this process and on two Ray workers."""

import json

import pytest
import torch
from safetensors.torch import load_file

CONFIG = {
    "data": "digits",
    "init": "random",
    "model": {"name": "convnext_micro", "stem": "conv", "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "resolution": 32,
    "epochs": 2,
    "batch_size": 16,
    "warmup_epochs": 0.5,
    "ema_decay": 0.5,
    "mixup": 0.8,
    "attack": {"norm": "Linf", "eps": 0.1, "steps": 2},
    "validation": {"every_epochs": 1, "max_images": 16, "fraction": 0.15, "steps": 2},
    "device": "cpu",
    "loader": "native",
    "num_threads": 1,
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_workers_train_like_one(run_stage, storage, monkeypatch, ray_turn):
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    data = run_stage(
        "encode",
        {"source": "digits", "max_short_side": 32, "mode": "raw", "max_train_images": 100, "max_val_images": 20},
    )
    alone = run_stage("adversarial", CONFIG, {"data": data})
    together = run_stage("adversarial", {**CONFIG, "num_workers": 2}, {"data": data})
    assert together.fingerprint == alone.fingerprint
    one, two = (json.loads(run.path("history.json").read_text()) for run in (alone, together))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [5, 10]
    for first, second in zip(one, two):
        for figure in ("loss", "grad_norm", "attack_gain"):
            assert second[figure] == pytest.approx(first[figure], rel=1e-4), figure
        assert second["lr"] == first["lr"]
        assert second["clean_accuracy"] == pytest.approx(first["clean_accuracy"], abs=1 / 15 + 1e-9)
    weights = [load_file(run.path("model/weights.safetensors")) for run in (alone, together)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-3, rtol=1e-3)
    assert not __import__("ray").is_initialized()
