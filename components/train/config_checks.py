"""What is refused before any work: fields of a training stage that do not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.imagenet1k_tags import is_imagenet1k, other_data_in
from components.threats import check_radius

if TYPE_CHECKING:
    from components.train.config import TrainConfig


def check_schedule(config: TrainConfig) -> None:
    """The learning rate rises before it falls, and the attack's radius is reached.

    Raises:
        UserError: the rate peaks after the end, or ends above its peak; the radius still grows at the end.
    """
    if config.warmup_epochs >= config.epochs and config.epochs > 1:
        raise UserError(
            "the learning rate peaks after the last epoch",
            where="warmup_epochs",
            value=config.warmup_epochs,
            remedy=f"use less than epochs ({config.epochs})",
        )
    if config.lr_min > config.lr:
        raise UserError(
            "is above the peak", where="lr_min", value=config.lr_min, remedy=f"use at most lr ({config.lr})"
        )
    if config.attack is not None and 0 < config.epochs <= config.attack.eps_warmup:
        raise UserError(
            "the radius still grows when the training ends, so the network never meets the one that its result names",
            where="attack.eps_warmup",
            value=config.attack.eps_warmup,
            remedy=f"use less than epochs ({config.epochs})",
        )


def check_probe(config: TrainConfig) -> None:
    """The held-out check attacks with a radius that means something, and there is one where weights are chosen by it.

    Raises:
        UserError: a radius in other units, or of another norm's attack; `select: best` without held-out images.
    """
    attack, probe = config.attack, config.probe
    norm = probe.norm or (attack.norm if attack else "Linf")
    if probe.eps is not None:
        check_radius(norm, probe.eps, where="probe.eps")
    elif attack is not None and norm != attack.norm:
        raise UserError(
            f"the training attack's radius is one of {attack.norm}, not of {norm}",
            where="probe.eps",
            value=probe.eps,
            remedy=f"give the {norm} radius, or leave out probe.norm",
        )
    if config.select == "best" and probe.fraction == 0:
        raise UserError(
            "no images are held out, so there is nothing to choose the best weights by",
            where="select",
            value=config.select,
            remedy="set probe.fraction above 0 (default 0.1), or select: last",
        )


def check_first_weights(config: TrainConfig) -> None:
    """It is known where the first weights and the network come from.

    Raises:
        UserError: `init` or `model` is missing, the normaliser of a tag is asked for without one, or the named weights
            have seen other data than the recipe allows.
    """
    if config.needs_init and config.init is None:
        raise UserError(
            f"a {config.kind} stage starts from another one",
            where="init",
            remedy="name the stage, or say random, timm:<tag> or file:<path>",
        )
    if config.model is None and not config.init_stage:
        raise UserError(
            "no network is named and there is no stage to take it from",
            where="model",
            remedy="add model: {name: convnext_tiny, stem: patch}",
        )
    if config.model is not None and config.model.normalize == "tag" and not (config.init or "").startswith("timm:"):
        raise UserError(
            "only weights of a timm tag name their normaliser",
            where="model.normalize",
            value="tag",
            remedy="give mean and deviation, leave it out for raw pixels, or set init: timm:<tag>",
        )
    if config.init_data == "imagenet-1k":
        _check_tag(config.init or "")


def _check_tag(init: str) -> None:
    if not init.startswith("timm:"):
        return
    tag = init.removeprefix("timm:")
    if is_imagenet1k(tag):
        return
    network, _, label = tag.rpartition(".")
    words, foreign = label.lower().split("_"), other_data_in(tag)
    if not network and not foreign:
        network, words = label, []  # a network without a tag: timm would choose one
    kept = [word for word in words if word.isalpha() and word not in foreign]
    near = "_".join([*(kept or ["fb"]), "in1k"])
    raise UserError(
        "these weights were not trained on ImageNet-1k alone, and init_data says imagenet-1k",
        where="init",
        value=init,
        remedy=f"take timm:{f'{network}.' if network else ''}{near}, or set init_data: any",
    )


def check_workers(config: TrainConfig) -> None:
    """Some number of workers that is allowed shares the batch evenly, in pairs where images are mixed.

    Raises:
        UserError: none does.
    """
    least, most = config.worker_range
    if least > most:
        raise UserError(
            "the least number of workers is above the largest",
            where="workers_min",
            value=least,
            remedy=f"use at most workers ({most}), or write a range such as workers: 1-4",
        )
    if any(shares_evenly(config, n) for n in range(max(least, 1), max(most, 1) + 1)):
        return
    batch = config.batch_size
    if least != most:
        raise UserError(
            f"no number of workers from {least} to {most} shares a batch evenly"
            + (" in pairs, as mixup and cutmix need" if config.mixes else ""),
            where="batch_size",
            value=batch,
            remedy=f"use a multiple of {(2 if config.mixes else 1) * most}, or widen workers",
        )
    workers = max(most, 1)
    if batch % workers:
        raise UserError(
            f"{workers} workers cannot share a batch evenly",
            where="batch_size",
            value=batch,
            remedy=f"use a multiple of {workers}",
        )
    raise UserError(
        "mixup and cutmix pair the images of a batch, so each worker needs an even number",
        where="batch_size",
        value=batch,
        remedy=f"use a multiple of {2 * workers}",
    )


def shares_evenly(config: TrainConfig, workers: int) -> bool:
    """Whether `workers` can take equal parts of a batch, of an even number of images where they are mixed."""
    return config.batch_size % (workers * (2 if config.mixes else 1)) == 0


def check_dropout(config: TrainConfig, kwargs: Mapping[str, Any]) -> None:
    """The network draws nothing that another number of workers, or of pieces of a batch, would draw otherwise.

    Args:
        kwargs: the network's further arguments, of the recipe or of the card of the first weights.

    Raises:
        UserError: dropout, which draws in the order of the forwards. (Stochastic depth draws by image.)
    """
    if not config.micro_batch and config.worker_range[1] <= 1:
        return
    for name, rate in kwargs.items():
        if name.endswith("drop_rate") and rate:
            cause = "pieces of a batch (micro_batch)" if config.micro_batch else "another number of workers"
            raise UserError(
                f"dropout draws other numbers with {cause}, so the result would not be the same",
                where=f"model.kwargs.{name}",
                value=rate,
                remedy="set it to 0 and use drop_path, or set micro_batch: 0 and workers: 0 or 1",
            )
