"""Measures the loaders: small raw sets, photographs, heavy augmentation, and FFCV beside the native engine.

    python benchmarks/data_loader.py [--json] [--quick] [--images 400] [--threads 2]

Goals: the quickstart's training step takes about 2,000 images per second on two cores, so the loader must give several
times as many. On photographs the native engine must reach at least 80 % of FFCV's speed to be able to replace it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Run as a file, Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import Row, row, show
from benchmarks.timing import timed
from components.data import ffcv_engine, sources
from components.data.augment import HeavyAugmentation
from components.data.beton_reader import BetonFile
from components.data.beton_writer import BetonWriter
from components.data.crop import CenterCrop
from components.data.encode import EncodeSettings, ImageItem, encode_pixels, encode_split
from components.data.loader import Loader, open_loader
from components.data.manifest import DataManifest, SplitManifest
from components.store.objects import ObjectStore

IMAGENET_IMAGES = 1_281_167


class Bench:
    """Encodes data sets in a temporary folder and opens loaders on them.

    Args:
        num_images: photographs to make.
        num_threads: threads of each loader, and processes of the second encoding.
        seconds: duration of each measurement; 0 measures one epoch.
    """

    def __init__(self, folder: Path, num_images: int, num_threads: int, seconds: float) -> None:
        self.folder, self.num_images, self.num_threads, self.seconds = folder, num_images, num_threads, seconds
        self.store = ObjectStore(str(folder / "objects"), folder / "cache")

    def manifest(self, path: Path) -> DataManifest:
        ref, n = self.store.put(path, path.name), len(BetonFile(path))
        split = SplitManifest(**ref.as_dict(), num_images=n)
        return DataManifest(name=path.stem, classes=("all",), splits={"train": split}, encode={})

    def small(self, mode: Any) -> DataManifest:
        """1,800 images of 32 px, as the quickstart has them."""
        rng, path = np.random.default_rng(0), self.folder / f"small-{mode}.beton"
        with BetonWriter(path, 1800) as writer:
            for k in range(1800):
                pixels = sources.draw_shape(list(sources.SHAPES)[k % 12], rng)
                writer.add(encode_pixels(pixels, 0, EncodeSettings(32, mode)))
        return self.manifest(path)

    def photographs(self) -> list[ImageItem]:
        """JPEGs of 500 x 375, as smooth and as large as ImageNet's."""
        rng, items = np.random.default_rng(0), []
        for k in range(self.num_images):
            coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((500, 375))
            noisy = np.clip(np.asarray(coarse) + rng.normal(0, 4, (375, 500, 3)), 0, 255).astype(np.uint8)
            path = self.folder / f"{k}.jpg"
            Image.fromarray(noisy).save(path, quality=92)
            items.append(ImageItem(str(path), 0))
        return items

    def open(self, manifest: DataManifest, **options: Any) -> Loader:
        settings = {"batch_size": 64, "resolution": 32, "seed": 0, "train": True, "num_threads": self.num_threads}
        return open_loader(manifest, "train", self.store, **{**settings, **options})

    def rate(self, manifest: DataManifest, **options: Any) -> float:
        """Measures images per second over complete epochs, after one epoch that is not measured."""
        loader = self.open(manifest, **options)
        for _ in loader.epoch(0):
            pass
        done, spent, epoch, start = 0, 0.0, 1, time.perf_counter()
        while not done or spent < self.seconds:
            done += sum(len(batch.labels) for batch in loader.epoch(epoch))
            epoch, spent = epoch + 1, time.perf_counter() - start
        loader.close()
        return done / spent


def small_rows(bench: Bench) -> list[Row]:
    """Measures sets of 32 px images, as the quickstart has them."""
    rows, unit = [], "images/s"
    for mode, goal_evaluation, goal_training in (("raw", 20000, 8000), ("jpg", None, None)):
        made = bench.small(mode)
        rows.append(row(f"32 px {mode}, evaluation", bench.rate(made, train=False), unit, least=goal_evaluation))
        rows.append(row(f"32 px {mode}, crop and flip", bench.rate(made), unit, least=goal_training))
        flipped = bench.rate(made, crop=CenterCrop(), hflip=0.5)
        rows.append(row(f"32 px {mode}, flip", flipped, unit, least=goal_training))
    rows.append(row("32 px jpg, heavy augmentation", bench.rate(made, augment=HeavyAugmentation(0)), unit))
    return rows


def large_rows(bench: Bench) -> list[Row]:
    """Measures photographs: encoding them, and reading them with both engines."""
    rows, items, path = [], bench.photographs(), bench.folder / "photographs.beton"
    settings, unit = EncodeSettings(256, "jpg"), "images/s"
    for workers in sorted({1, bench.num_threads}):
        spent = timed(lambda workers=workers: encode_split(items, path, settings, num_workers=workers))
        rows.append(row(f"encode to 256 px, {workers} process(es)", len(items) / spent, unit))
    made, options = bench.manifest(path), {"resolution": 224, "batch_size": min(100, len(items))}
    native = bench.rate(made, engine="native", **options)
    rows.append(row("256 px jpg to 224 px, crop and flip, native", native, unit))
    evaluation = bench.rate(made, train=False, crop=CenterCrop(0.875), **options)
    rows.append(row("256 px jpg to 224 px, evaluation", evaluation, unit))
    heavy = bench.rate(made, engine="native", augment=HeavyAugmentation(0), **options)
    rows.append(row("256 px jpg to 224 px, heavy, native", heavy, unit))
    if not ffcv_engine.import_error():
        ffcv = bench.rate(made, engine="ffcv", **options)
        rows.append(row("256 px jpg to 224 px, crop and flip, ffcv", ffcv, unit))
        rows.append(row("native / ffcv", native / ffcv, "ratio", least=0.8))
    return rows


def check_rows(bench: Bench, count: int) -> list[Row]:
    """Measures how long opening and checking a file of `count` tiny images takes."""
    path = bench.folder / "many.beton"
    sample = encode_pixels(np.zeros((2, 2, 3), np.uint8), 0, EncodeSettings(8, "raw"))
    with BetonWriter(path, count) as writer:
        for _ in range(count):
            writer.add(sample)
    return [row(f"open and check {count:,} samples", timed(lambda: BetonFile(path)), "s", most=2.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: whether it runs, not how fast")
    parser.add_argument("--images", type=int, default=400, help="photographs to make")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    images, seconds, many = (8, 0.0, 1000) if options.quick else (options.images, 3.0, IMAGENET_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), images, options.threads, seconds)
        rows = small_rows(bench) + large_rows(bench) + check_rows(bench, many)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
