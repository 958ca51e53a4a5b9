"""What the training loop sees of a data set: the preset decides what an image looks like, the seed which are held out."""

import numpy as np
import pytest
import torch

from components.store.execute import StageJob
from components.store.objects import ObjectStore
from components.store.spec import StageSpec
from components.train.config import PretrainConfig
from components.train.distributed import Distributed
from components.train.images import TrainImages


@pytest.fixture
def first_batch(run_stage, storage):
    data = run_stage(
        "encode",
        {"source": "digits", "max_short_side": 32, "mode": "raw", "max_train_images": 80, "max_val_images": 20},
    )

    def batch(epoch=0, **changes):
        config = PretrainConfig(
            data="encode", resolution=32, batch_size=32, num_threads=1, epochs=2, warmup_epochs=1, **changes
        )
        spec = StageSpec(name="pretrain", kind="pretrain", config={}, seed=0, fingerprint="0" * 64)
        job = StageJob(spec, {"data": data}, None, ObjectStore(storage.objects_uri, storage.cache))
        images = TrainImages(job, config, Distributed(rank=0, size=1, device=torch.device("cpu")), seed=0)
        with images.train.epoch(epoch) as batches:
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


def test_matching_is_the_released_codes_order_fill_and_erasing(first_batch):
    heavy, order = first_batch(augment="heavy")
    matching, same = first_batch(augment="heavy", match_released_code=True)
    assert np.array_equal(order, same)
    assert heavy.dtype == np.uint8
    assert matching.min() < 0, "erased with N(0, 1), outside of what a pixel can be"
    assert matching.max() > 1
    later, second = first_batch(augment="heavy", match_released_code=True, epoch=1)
    assert np.array_equal(same, second), "every epoch in the same order"
    assert not np.array_equal(matching, later), "but not with the same crops"
    _, shuffled = first_batch(augment="heavy", epoch=1)
    assert not np.array_equal(order, shuffled)


def test_matching_basic_augmentation_mirrors_nothing(first_batch):
    """With whole images as crops, all that basic augmentation can still do is mirror."""
    whole = {"augment": "basic", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    mirrored, order = first_batch(**whole, hflip=1.0)
    matching, fixed = first_batch(**whole, hflip=1.0, match_released_code=True)
    assert np.array_equal(order, fixed)
    assert np.array_equal(matching, mirrored[:, :, ::-1])
    assert not np.array_equal(matching, mirrored)


def test_matching_training_groups_its_weights_as_the_released_code():
    from components.models.build import build_model
    from components.train.config import AdversarialConfig
    from components.train.state import TrainState

    def undecayed(**changes):
        config = AdversarialConfig(data="d", init="random", model={"name": "convnext_micro"}, **changes)
        state = TrainState.start(build_model("convnext_micro", num_classes=10), "convnext_micro", config, Distributed())
        return {len(group["params"]) for group in state.optimizer.param_groups if not group["weight_decay"]}

    assert undecayed(match_released_code=True) == undecayed(no_weight_decay="released_code")
    assert undecayed(match_released_code=True) != undecayed()
