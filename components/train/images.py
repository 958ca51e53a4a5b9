"""The images of one training stage: those trained on, those held out, and their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.data.augment import HeavyAugmentation
from components.data.crop import CenterCrop, RandomResizedCrop
from components.data.loader import Batch, Loader, open_loader
from components.data.manifest import DataManifest, read_manifest
from components.errors import UserError
from components.process import stage_cores
from components.train.config import TrainConfig
from components.train.distributed import Distributed
from components.train.seeds import derive
from components.train.validation import describe_split

if TYPE_CHECKING:
    from components.store.execute import StageJob

_WHOLE = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))


def split_indices(total: int, config: TrainConfig, seed: int) -> tuple[list[int], list[int]]:
    """Returns the indices of the train split to train on and to hold out, sorted; a pure function of the seed.

    Raises:
        UserError: too few images for one batch.
    """
    held = min(int(total * config.validation.fraction), config.validation.max_images)
    order = np.random.default_rng([derive("selection"), seed]).permutation(total)
    if total - held < config.batch_size:
        raise UserError(
            f"{total - held} training images do not fill one batch",
            where="batch_size",
            value=config.batch_size,
            remedy="use a smaller batch_size",
        )
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


class TrainImages:
    """Opens loaders over a data set's training split: `train`, and `held_out` if images are held out."""

    def __init__(self, job: StageJob, config: TrainConfig, distributed: Distributed, seed: int) -> None:
        self.manifest: DataManifest = read_manifest(job.inputs["data"].path("manifest.json"))
        self.num_classes = self.manifest.num_classes
        train, held = split_indices(self.manifest.split("train").num_images, config, seed)
        self.counts = {"train": len(train), "held_out": len(held)}
        self.split = describe_split(held, len(train) + len(held), config, seed)
        common = {
            "engine": config.loader,
            "batch_size": config.batch_size,
            "resolution": config.resolution,
            "seed": seed,
            "rank": distributed.rank,
            "world_size": distributed.size,
            "num_threads": config.num_threads or stage_cores(),
        }
        crops = config.augment != "none"
        heavy = HeavyAugmentation.of(seed, match_released_code=config.match_released_code)
        self.train: Loader = open_loader(
            self.manifest,
            "train",
            job.objects,
            train=True,
            indices=train,
            order="fixed" if config.match_released_code else "random",
            crop=RandomResizedCrop(config.scale, config.ratio) if crops else _WHOLE,
            hflip=config.hflip_share,
            augment=heavy if config.augment == "heavy" else None,
            drop_last=True,
            **common,
        )
        self.held_out: Loader | None = None
        if held:
            self.held_out = open_loader(
                self.manifest,
                "train",
                job.objects,
                train=False,
                indices=held,
                order="sequential",
                crop=CenterCrop(config.center_crop),
                hflip=0.0,
                drop_last=False,
                **common,
            )


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns images (B, 3, H, W) float32 in [0, 1], channels last, and labels (B,) int64."""
    pixels = torch.from_numpy(batch.images).to(device, non_blocking=True)
    labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
    # The bytes are channels-last already; permuting the view keeps them so.
    images = pixels.permute(0, 3, 1, 2)
    return (images.float().div_(255) if images.dtype == torch.uint8 else images), labels


def held_out_batches(images: TrainImages, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields this worker's held-out images and labels."""
    if images.held_out is None:
        return
    with images.held_out.epoch(0) as batches:
        for batch in batches:
            if len(batch.labels):
                yield to_device(batch, device)
