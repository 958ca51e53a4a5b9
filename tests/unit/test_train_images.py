"""What the training loop sees of a data set: the preset decides what an image looks like, the seed which are held out."""

import numpy as np
import pytest
import torch

from components.store.job import StageJob, StageSpec
from components.store.objects import ObjectStore
from components.train.config import PretrainConfig
from components.train.images import TrainImages
from components.train.world import World


@pytest.fixture
def first_batch(run_stage, places):
    data = run_stage("encode", {"source": "digits", "side": 32, "mode": "raw", "limit_train": 80, "limit_val": 20})

    def batch(**changes):
        config = PretrainConfig(
            data="encode", resolution=32, batch_size=32, threads=1, epochs=2, warmup_epochs=1, **changes
        )
        spec = StageSpec(name="pretrain", kind="pretrain", config={}, seed=0, fingerprint="0" * 64)
        job = StageJob(spec, {"data": data}, None, ObjectStore(places.objects_uri, places.cache))
        images = TrainImages(job, config, World(rank=0, size=1, device=torch.device("cpu")), seed=0)
        with images.train.epoch(0) as batches:
            found = next(iter(batches))
        return found.images.copy(), found.indices.copy()

    return batch


def test_presets_differ_in_pixels_and_not_in_order(first_batch):
    plain, order = first_batch(augment="none")
    basic, same = first_batch(augment="basic")
    heavy, again = first_batch(augment="heavy")
    assert np.array_equal(order, same)
    assert np.array_equal(order, again)
    assert not np.array_equal(plain, basic)
    assert not np.array_equal(basic, heavy)
    changed = (basic != heavy).any(axis=(1, 2, 3)).mean()
    assert changed > 0.5
