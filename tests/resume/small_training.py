"""A small training stage whose run keeps everything in folders; the resume tests interrupt it."""

from types import SimpleNamespace

from components.store.execute import StageJob
from components.store.spec import StageSpec
from components.train.config import CONFIGS
from tests.small_training import Run

ATTACKS = {
    "clean": None,
    "adversarial": {"norm": "Linf", "eps": 0.1, "steps": 2},
    "random start": {"norm": "Linf", "eps": 0.1, "steps": 1, "name": "fgsm", "eps_warmup_epochs": 1.5},
}
PER_EPOCH = 5
"""Steps per epoch; there are two epochs."""
TIMED = ("images_per_s", "data_wait")
"""Figures of an epoch that depend on clocks."""


def config_of(which, **change):
    kind = "pretrain" if ATTACKS[which] is None else "adversarial"
    settings = {
        "data": "digits",
        "init": "random",
        "model": {
            "name": "convnext_micro",
            "stem": "conv",
            "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 1.0},
        },
        "resolution": 32,
        "epochs": 2,
        "batch_size": 16,
        "lr": 2e-3,
        "warmup_epochs": 0.5,
        "ema_decay": 0.9,
        "mixup": 0.8,
        "cutmix": 1.0,
        "drop_path": 0.2,
        "scale": [0.5, 1.0],
        "validation": {"every_epochs": 1, "max_images": 16, "fraction": 0.15, "steps": 2, "eps": 0.1},
        "keep_weights": "best",
        "checkpoint_min_interval_s": 0,
        "device": "cpu",
        "loader": "native",
        "num_threads": 1,
        **({"attack": ATTACKS[which]} if ATTACKS[which] else {}),
        **change,
    }
    return kind, CONFIGS[kind].model_validate(settings).model_dump(mode="json")


def job_of(data, folder, which, **change):
    return job_from(data, folder, *config_of(which, **change))


def job_from(data, folder, kind, config):
    spec = StageSpec(name=kind, kind=kind, config=config, seed=3, fingerprint="a" * 64)
    return StageJob(spec, {"data": SimpleNamespace(path=lambda name: data.manifest / name)}, Run(folder), data.objects)


def same(one, other):
    """Asserts that two final states are equal bit for bit, except for figures that clocks measured."""
    import torch

    assert {g: set(t) for g, t in one.tensors.items()} == {g: set(t) for g, t in other.tensors.items()}
    for group, tensors in other.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(one.tensors[group][name], tensor), f"{group}/{name}"
    assert _untimed(one) == _untimed(other)
    places = [
        {k: snapshot.metadata[k] for k in ("epoch", "batch", "step", "best", "monitor", "scaler", "compute_setup")}
        for snapshot in (one, other)
    ]
    assert places[0] == places[1]


def _untimed(snapshot):
    return [{k: v for k, v in entry.items() if k not in TIMED} for entry in snapshot.metadata["history"]]
