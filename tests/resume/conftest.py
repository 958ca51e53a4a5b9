"""Encoded images for the resume tests."""

from types import SimpleNamespace

import pytest

from components.store.execute import StageJob
from components.store.spec import StageSpec
from tests.resume.small_training import Run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """120 digits, encoded for real."""
    from components.data import stage as encode
    from components.store.objects import ObjectStore

    folder = tmp_path_factory.mktemp("digits")
    objects = ObjectStore(str(folder / "objects"), folder / "cache")
    config = {"source": "digits", "max_short_side": 32, "mode": "raw", "max_train_images": 100, "max_val_images": 20}
    job = StageJob(
        StageSpec(name="digits", kind="encode", config=config, seed=0, fingerprint="d" * 64), {}, Run(folder), objects
    )
    encode.run(job)
    return SimpleNamespace(objects=objects, manifest=folder / "artifacts")
