"""One training stage on encoded digits, without MLflow: shared by the tests of training."""

import shutil
import sys
from types import SimpleNamespace

from components.store.execute import StageJob
from components.store.spec import StageSpec
from components.train.config import CONFIGS

NETWORK = {"name": "convnext_micro", "stem": "conv", "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}
SMALL = {
    "data": "digits",
    "init": "random",
    "model": NETWORK,
    "resolution": 32,
    "epochs": 2,
    "batch_size": 16,
    "lr": 2e-3,
    "warmup_epochs": 0.5,
    "ema_decay": 0.9,
    "label_smoothing": 0.0,
    "augment": "none",
    "validation": {"every_epochs": 1, "max_images": 16, "fraction": 0.15, "steps": 2, "eps": 0.1},
    "checkpoint_min_interval_s": 0,
    "device": "cpu",
    "loader": "native",
    "num_threads": 1,
}


class Run:
    """A stage's run that keeps everything in folders and lists."""

    def __init__(self, folder):
        self.workdir, self.artifacts, self.attempt = folder / "work", folder / "artifacts", 1
        self.metrics, self.notes, self.params = [], [], {}
        self.workdir.mkdir(parents=True, exist_ok=True)

    def log_params(self, params):
        self.params.update(params)

    def log_metrics(self, metrics, step=0):
        self.metrics.append((step, metrics))

    def progress(self, **update):
        self.notes.append(update)

    def info(self, text):
        print(text, file=sys.stderr, flush=True)

    def warn(self, text):
        self.info(f"warning: {text}")

    def save(self, local, artifact):
        target = self.artifacts / artifact
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(local, target, dirs_exist_ok=True) if local.is_dir() else shutil.copyfile(local, target)

    def fetch(self, artifact, to):
        found = self.artifacts / artifact
        if found.is_dir():
            return shutil.copytree(found, to, dirs_exist_ok=True)
        return shutil.copyfile(found, to) if found.exists() else None


def encoded(folder, **change):
    """Digits (or another source), encoded for real; for `job`."""
    from components.data import stage as encode
    from components.store.objects import ObjectStore

    objects = ObjectStore(str(folder / "objects"), folder / "cache")
    config = {
        "source": "digits",
        "max_short_side": 32,
        "mode": "raw",
        "max_train_images": 100,
        "max_val_images": 20,
        **change,
    }
    spec = StageSpec(name="digits", kind="encode", config=config, seed=0, fingerprint="d" * 64)
    encode.run(StageJob(spec, {}, Run(folder), objects))
    return SimpleNamespace(objects=objects, manifest=folder / "artifacts")


def job(data, folder, *, seed=3, inputs=None, **change):
    """A stage over `data`, adversarial if `change` has an attack, writing below `folder`."""
    kind = change.pop("kind", "adversarial" if change.get("attack") else "pretrain")
    config = CONFIGS[kind].model_validate({**SMALL, **change}).model_dump(mode="json")
    spec = StageSpec(name=kind, kind=kind, config=config, seed=seed, fingerprint="a" * 64)
    images = SimpleNamespace(path=lambda name: data.manifest / name)
    return StageJob(spec, {"data": images, **(inputs or {})}, Run(folder), data.objects)


def train(made):
    """Runs the stage in this process and returns its result."""
    from components.train import stage
    from components.train.distributed import Distributed

    return stage.work(made, Distributed())
