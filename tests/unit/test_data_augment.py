"""Heavy augmentation in the loader: pure in (seed, epoch, sample), also in the form of the paper's released code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.data.augment import HeavyAugmentation
from components.data.beton_writer import BetonWriter
from components.data.encode import EncodeSettings, encode_pixels
from components.data.loader import Loader, open_loader
from components.data.manifest import DataManifest, SplitManifest
from components.data.randomness import sample_keys
from components.store.objects import ObjectStore

N = 60


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("set")
    store = ObjectStore(str(folder / "objects"), folder / "cache")
    images = np.random.default_rng(0).integers(60, 200, (N, 32, 32, 3), np.uint8)
    with BetonWriter(folder / "x.beton", N, page_size=2 << 20) as writer:
        for image in images:
            writer.add(encode_pixels(image, 0, EncodeSettings(32, "raw")))
    ref = store.put(Path(folder / "x.beton"), "x.beton")
    split = SplitManifest(**ref.as_dict(), num_images=N)
    manifest = DataManifest(name="x", classes=("a",), splits={"train": split}, encode={})

    def open_it(**options: Any) -> Loader:
        settings = {"batch_size": 12, "resolution": 32, "seed": 5, "train": True, **options}
        return open_loader(manifest, "train", store, **settings)

    return open_it


def by_sample(loader: Loader, epoch: int, start: int = 0) -> dict[int, bytes]:
    return {
        int(i): image.tobytes()
        for b in loader.epoch(epoch, start)
        for i, image in zip(b.indices, b.images, strict=True)
    }


@pytest.mark.parametrize("released", [True, False])
def test_nothing_but_seed_epoch_and_sample_changes_an_image(
    opened: Any, released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.data.native_engine.SMALLEST_PIECE", 1)
    augment = HeavyAugmentation.of(7, match_released_code=released)
    whole = by_sample(opened(augment=augment, num_threads=1), 3)
    assert len(whole) == N
    assert by_sample(opened(augment=augment, num_threads=3, batch_size=20), 3) == whole
    tail = by_sample(opened(augment=augment, num_threads=2), 3, 2)
    assert len(tail) == N - 24
    assert tail == {index: whole[index] for index in tail}
    ranks = [by_sample(opened(augment=augment, rank=rank, world_size=2), 3) for rank in range(2)]
    assert ranks[0] | ranks[1] == whole
    assert by_sample(opened(augment=augment), 4) != whole
    assert by_sample(opened(augment=HeavyAugmentation.of(8, match_released_code=released)), 3) != whole


def test_timms_form_stays_in_the_image_and_the_released_codes_form_does_not(opened: Any) -> None:
    timms = next(opened(augment=HeavyAugmentation.of(1, match_released_code=False)).epoch(0)).images
    released = np.concatenate(
        [b.images for b in opened(augment=HeavyAugmentation.of(1, match_released_code=True)).epoch(0)]
    )
    assert timms.dtype == np.uint8
    assert released.dtype == np.float32
    assert -6 < released.min() < -2
    assert 2 < released.max() < 6
    outside = ((released < 0) | (released > 1)).any((1, 2, 3))
    assert 0.1 < outside.mean() < 0.45


@pytest.mark.parametrize(("fill", "colour"), [("black", 0), ("mean", 116)])
def test_the_fill_colour_is_the_one_asked_for(fill: Any, colour: int) -> None:
    """White images: what is not white was filled in (rotation, shearing, translation) or changed as a whole."""
    augment = HeavyAugmentation(3, fill=fill, erase_probability=0.0)
    white = np.full((300, 32, 32, 3), 255, np.uint8)
    out = np.empty_like(white)
    augment.fill_batch(out, white, sample_keys(np.arange(300), 0))
    corners = out[:, [0, 0, -1, -1], [0, -1, 0, -1], 1]
    assert (corners == colour).any(axis=1).mean() > 0.1
    assert (corners == (116 if colour == 0 else 1)).mean() < 0.05


def test_erased_pixels_are_noise_about_the_mean(opened: Any) -> None:
    augment = HeavyAugmentation(3, erase_probability=1.0)
    grey = np.full((200, 32, 32, 3), 255, np.uint8)
    out = np.empty_like(grey)
    augment.fill_batch(out, grey, sample_keys(np.arange(200), 0))
    untouched = HeavyAugmentation(3, erase_probability=0.0)
    plain = np.empty_like(grey)
    untouched.fill_batch(plain, grey, sample_keys(np.arange(200), 0))
    erased = out[(out != plain).any(axis=3)]
    share = len(erased) / (200 * 32 * 32)
    assert 0.1 < share < 0.25
    assert np.abs(erased.mean(axis=0) / 255 - [0.485, 0.456, 0.406]).max() < 0.03


def test_no_augmentation_leaves_batches_as_they_are(opened: Any) -> None:
    plain = by_sample(opened(), 0)
    assert by_sample(opened(augment=None), 0) == plain
    assert by_sample(opened(augment=HeavyAugmentation(1)), 0) != plain
