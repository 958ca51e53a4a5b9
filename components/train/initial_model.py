"""Builds the network that a training stage starts with: fresh, from an earlier stage, a timm tag, or a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from components.errors import UserError
from components.models import (
    ModelCard,
    build_model,
    check_imagenet1k_tag,
    choose_normalizer,
    find_family,
    load_model,
    load_published,
    set_resolution,
    tag_classes,
    tag_normalize,
    transplant,
)
from components.train.config import ConvStemConfig, ModelConfig, PretrainConfig, TrainConfig
from components.train.seeds import derive
from components.train.stochastic_depth import replace_drop_path
from components.train.workers import check_dropout

if TYPE_CHECKING:
    from components.data.manifest import DataManifest
    from components.store.execute import StageJob


logger = logging.getLogger(__name__)

_FILE_DETAILS = ("sha256", "state", "states")
"""Details of a file that stay on the card of the model that began with it."""


@dataclass(frozen=True)
class InitialModel:
    """The first network, its card, and the names of the weights that are fresh although a source was loaded."""

    model: nn.Module
    card: ModelCard
    fresh: tuple[str, ...] = ()


def initial_model(job: StageJob, config: TrainConfig, data: DataManifest, seed: int) -> InitialModel:
    """Builds the stage's first network on the CPU. A pure function of its arguments.

    Raises:
        UserError: the weights cannot be loaded or do not fit.
    """
    torch.manual_seed(derive("init", seed))
    init = config.init or "random"
    if config.init_stage:
        source, card = load_model(job.inputs["init"].path("model"))
        return _from_source(source, card, _wanted(config, card), config, data)
    assert config.model is not None, "validated with the configuration"
    wanted = _wanted(config, None)
    if init.startswith("file:"):
        source, card = _load_file(Path(init.removeprefix("file:")).expanduser(), config.model)
        return _from_source(source, card, _with_what_the_file_holds(wanted, card, init, config), config, data)
    tag = init.removeprefix("timm:") if init.startswith("timm:") else None
    if tag is not None and config.pretrained_data == "imagenet-1k":
        check_imagenet1k_tag(tag)
    if tag is not None:
        _check_trained(tag_classes(wanted.name, tag), config, data)
    card = _card(wanted, config, data, tag, source=init)
    return InitialModel(_build(card, config, tag), card)


def _wanted(config: TrainConfig, parent: ModelCard | None) -> ModelConfig:
    """Returns the network of the recipe, else the parent's; a convstem stage sets the ConvStem."""
    wanted = config.model
    if wanted is None:
        assert parent is not None
        wanted = ModelConfig(name=parent.name, stem=parent.stem, normalize=parent.normalize, kwargs=parent.kwargs)
    if isinstance(config, ConvStemConfig):
        wanted = wanted.model_copy(update={"stem": "conv"})
    return wanted


def _load_file(path: Path, wanted: ModelConfig) -> tuple[nn.Module, ModelCard]:
    if not path.exists():
        raise UserError("this file does not exist", where="init", value=str(path), remedy="check the path")
    if path.is_dir():
        source, card = load_model(path)
        return source, replace(card, details={"raw": card.normalize is None})
    return load_published(path, name=wanted.name, stem=wanted.stem, kwargs=wanted.kwargs)


def _with_what_the_file_holds(wanted: ModelConfig, card: ModelCard, init: str, config: TrainConfig) -> ModelConfig:
    """Returns the recipe's network with the normaliser and the options that belong to the loaded weights.

    A convstem stage that replaces the file's stem may set another normaliser: its stem is trained anew.

    Raises:
        UserError: the recipe names another normaliser than the one that the weights belong to.
    """
    normalize = wanted.normalize
    assert normalize != "tag", "validated with the configuration"
    if normalize is None or not (isinstance(config, ConvStemConfig) and card.stem != wanted.stem):
        normalize = choose_normalizer(card, normalize, where=init)
    inside = "no normaliser" if card.normalize is None else "its normaliser"
    logger.info("first weights: %s, with %s", card.source or init, inside)
    return wanted.model_copy(update={"normalize": normalize, "kwargs": wanted.kwargs or card.kwargs})


def _card(wanted: ModelConfig, config: TrainConfig, data: DataManifest, tag: str | None, source: str) -> ModelCard:
    normalize = wanted.normalize
    if normalize == "tag":
        assert tag is not None, "validated with the configuration"
        normalize = tag_normalize(wanted.name, tag)
    return ModelCard(
        name=find_family(wanted.name).name,
        stem=wanted.stem,
        num_classes=data.num_classes,
        resolution=config.resolution,
        classes=data.classes,
        normalize=normalize,
        crop_ratio=config.center_crop,
        kwargs=wanted.kwargs,
        source=source,
    )


def _build(card: ModelCard, config: TrainConfig, tag: str | None = None) -> nn.Module:
    check_dropout(card.kwargs, num_workers=config.num_workers, micro_batch_size=config.micro_batch_size)
    model = build_model(
        card.name,
        stem=card.stem,
        num_classes=card.num_classes,
        resolution=card.resolution,
        normalize=card.normalize,
        pretrained=tag,
        drop_path=config.drop_path,
        **card.kwargs,
    )
    return replace_drop_path(model)


def _from_source(
    source: nn.Module, parent: ModelCard, wanted: ModelConfig, config: TrainConfig, data: DataManifest
) -> InitialModel:
    _check_head(parent, config, data)
    _check_trained(parent.num_classes, config, data)
    if parent.resolution != config.resolution:
        set_resolution(source, config.resolution)
    card = _card(wanted, config, data, None, source=parent.source)
    model = _build(card, config)
    fresh = tuple(transplant(source.state_dict(), model))
    kept = {} if config.init_stage else {k: v for k, v in parent.details.items() if k in _FILE_DETAILS}
    return InitialModel(model, replace(card, details={"fresh": list(fresh), **kept}), fresh)


def _check_head(parent: ModelCard, config: TrainConfig, data: DataManifest) -> None:
    """Checks that a stage that keeps its parent's head has data with the same number of classes.

    Raises:
        UserError: the data has another number of classes.
    """
    if config.keeps_head and parent.num_classes != data.num_classes:
        raise UserError(
            f"the data has {data.num_classes} classes, and the head of the first weights {parent.num_classes}",
            where="data",
            value=config.data,
            remedy="use the data that those weights were trained on, or a transfer stage, which starts a fresh head",
        )


def _check_trained(classes: int, config: TrainConfig, data: DataManifest) -> None:
    """Checks that a stage without epochs has a trained classifier, unless `fresh_head` allows a fresh one.

    Args:
        classes: of the first weights' classifier; 0 if they have none.

    Raises:
        UserError: the classifier is not for the data's number of classes.
    """
    if classes == data.num_classes or not isinstance(config, PretrainConfig) or config.epochs or config.fresh_head:
        return
    theirs = f"is for {classes} classes" if classes else "is missing"
    raise UserError(
        f"the data has {data.num_classes} classes, the classifier of these weights {theirs}, and with epochs 0 a fresh "
        "one would never be trained",
        where="init",
        value=config.init,
        remedy="use weights for the data's classes, set epochs, or fresh_head: true if a later stage trains it",
    )
