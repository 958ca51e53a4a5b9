"""How fast the loaders are: small raw sets, photographs, heavy augmentation, FFCV beside the native engine.

    python benchmarks/data_loader.py [--json] [--images 400] [--threads 2]

Goals: the quickstart's training step takes about 2,000 images a second on two cores, so the loader has to give several
times that; on photographs the native engine has to keep up with FFCV closely enough to stand in for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.data import builtin, ffcv_engine
from components.data.augment import HeavyAugmentation
from components.data.beton_reader import BetonFile
from components.data.beton_writer import BetonWriter
from components.data.crop import CenterCrop
from components.data.encode import EncodeSettings, ImageItem, encode_pixels, encode_split
from components.data.loader import Loader, open_loader
from components.data.manifest import DataManifest, SplitManifest
from components.store.objects import ObjectStore

Row = dict[str, Any]


def row(name: str, goal: float | None, measured: float, unit: str, *, at_most: bool = False) -> Row:
    met = None if goal is None else bool(measured <= goal if at_most else measured >= goal)
    return {"name": name, "goal": goal, "measured": round(measured, 3), "unit": unit, "met": met}


class Bench:
    """Sets made for this run in a temporary folder, and loaders on them."""

    def __init__(self, folder: Path, images: int, threads: int) -> None:
        self.folder, self.images, self.threads = folder, images, threads
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
                pixels = builtin.draw_shape(list(builtin.SHAPES)[k % 12], rng)
                writer.add(encode_pixels(pixels, 0, EncodeSettings(32, mode)))
        return self.manifest(path)

    def photographs(self) -> list[ImageItem]:
        """JPEGs of 500 x 375, as smooth and as large as ImageNet's."""
        rng, items = np.random.default_rng(0), []
        for k in range(self.images):
            coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((500, 375))
            noisy = np.clip(np.asarray(coarse) + rng.normal(0, 4, (375, 500, 3)), 0, 255).astype(np.uint8)
            path = self.folder / f"{k}.jpg"
            Image.fromarray(noisy).save(path, quality=92)
            items.append(ImageItem(str(path), 0))
        return items

    def open(self, manifest: DataManifest, **options: Any) -> Loader:
        settings = {
            "batch_size": 64,
            "resolution": 32,
            "seed": 0,
            "train": True,
            "num_threads": self.threads,
            **options,
        }
        return open_loader(manifest, "train", self.store, **{**settings, **options})


def rate(loader: Loader, seconds: float = 1.5) -> float:
    """Images a second over whole epochs, after one to warm up."""
    for _ in loader.epoch(0):
        pass
    done, epoch, start = 0, 1, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        done += sum(len(batch.labels) for batch in loader.epoch(epoch))
        epoch += 1
    loader.close()
    return done / spent


def small_rows(bench: Bench) -> list[Row]:
    rows, unit = [], "images/s"
    for mode in ("raw", "jpg"):
        made, goals = bench.small(mode), (20000, 8000) if mode == "raw" else (None, None)
        whole = bench.open(made, train=False)
        rows.append(row(f"32 px {mode}, evaluation", goals[0], rate(whole), unit))
        rows.append(row(f"32 px {mode}, crop and flip", goals[1], rate(bench.open(made)), unit))
        flipped = bench.open(made, crop=CenterCrop(), hflip=0.5)
        rows.append(row(f"32 px {mode}, flip", goals[1], rate(flipped), unit))
    heavy = bench.open(made, augment=HeavyAugmentation(0))
    rows.append(row("32 px jpg, heavy augmentation", None, rate(heavy), unit))
    return rows


def large_rows(bench: Bench) -> list[Row]:
    rows, items, path = [], bench.photographs(), bench.folder / "photographs.beton"
    for workers in (1, bench.threads):
        start = time.perf_counter()
        encode_split(items, path, EncodeSettings(256, "jpg"), num_workers=workers)
        spent = time.perf_counter() - start
        rows.append(row(f"encode to 256 px, {workers} process(es)", None, len(items) / spent, "images/s"))
    made, options = bench.manifest(path), {"resolution": 224, "batch_size": 100}
    native = rate(bench.open(made, engine="native", **options), 4.0)
    rows.append(row("256 px jpg to 224 px, crop and flip, native", None, native, "images/s"))
    evaluation = bench.open(made, train=False, crop=CenterCrop(0.875), **options)
    rows.append(row("256 px jpg to 224 px, evaluation", None, rate(evaluation, 4.0), "images/s"))
    heavy = bench.open(made, engine="native", augment=HeavyAugmentation(0), **options)
    rows.append(row("256 px jpg to 224 px, heavy, native", None, rate(heavy, 4.0), "images/s"))
    if not ffcv_engine.import_error():
        ffcv = rate(bench.open(made, engine="ffcv", **options), 4.0)
        rows.append(row("256 px jpg to 224 px, crop and flip, ffcv", None, ffcv, "images/s"))
        rows.append(row("native / ffcv", 0.8, native / ffcv, "ratio"))
    return rows


def check_rows(bench: Bench) -> list[Row]:
    """How long a file of ImageNet's count takes to be checked at open (tiny images)."""
    path, count = bench.folder / "many.beton", 1_281_167
    sample = encode_pixels(np.zeros((2, 2, 3), np.uint8), 0, EncodeSettings(8, "raw"))
    with BetonWriter(path, count) as writer:
        for _ in range(count):
            writer.add(sample)
    return [row("open and check 1,281,167 samples", 2.0, timed(lambda: BetonFile(path)), "s", at_most=True)]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=400, help="photographs to make")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.images, options.threads)
        rows = small_rows(bench) + large_rows(bench) + check_rows(bench)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for one in rows:
        goal = "" if one["goal"] is None else f"goal {one['goal']:g}: {'met' if one['met'] else 'NOT MET'}"
        print(f"{one['name']:<46} {one['measured']:>12,.2f} {one['unit']:<9} {goal}")


if __name__ == "__main__":
    main()
