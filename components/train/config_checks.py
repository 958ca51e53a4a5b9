"""Checks across the fields of a training stage. They run when a recipe is read, before any work."""

from __future__ import annotations

from typing import Literal

from components.errors import UserError
from components.imagenet1k_tags import is_imagenet1k, other_data_in
from components.threats import check_radius
from components.train.config_parts import AttackConfig, ModelConfig, ValidationConfig


def check_schedule(epochs: int, warmup_epochs: float, lr: float, min_lr: float, eps_warmup_epochs: float) -> None:
    """Checks that the learning rate rises before it falls, and that the attack reaches its radius.

    Raises:
        UserError: the rate peaks after the end, or ends above its peak; the radius still grows at the end.
    """
    if warmup_epochs >= epochs and epochs > 1:
        raise UserError(
            "the learning rate peaks after the last epoch",
            where="warmup_epochs",
            value=warmup_epochs,
            remedy=f"use less than epochs ({epochs})",
        )
    if min_lr > lr:
        raise UserError("is above the peak", where="min_lr", value=min_lr, remedy=f"use at most lr ({lr})")
    if 0 < epochs <= eps_warmup_epochs:
        raise UserError(
            "the radius still grows when the training ends, so the network is never trained with the recipe's radius",
            where="attack.eps_warmup_epochs",
            value=eps_warmup_epochs,
            remedy=f"use less than epochs ({epochs})",
        )


def check_validation(
    validation: ValidationConfig, attack: AttackConfig | None, *, keep_weights: Literal["last", "best"]
) -> None:
    """Checks the radius of the validation's attack, and that the best weights can be chosen.

    Raises:
        UserError: a radius in other units, or of another norm's attack; `keep_weights: best` without held-out images.
    """
    norm = validation.norm or (attack.norm if attack else "Linf")
    if validation.eps is not None:
        check_radius(norm, validation.eps, where="validation.eps")
    elif attack is not None and norm != attack.norm:
        raise UserError(
            f"the training attack's radius is one of {attack.norm}, not of {norm}",
            where="validation.eps",
            value=validation.eps,
            remedy=f"give the {norm} radius, or leave out validation.norm",
        )
    if keep_weights == "best" and validation.fraction == 0:
        raise UserError(
            "no images are held out, so the best weights cannot be chosen",
            where="keep_weights",
            value=keep_weights,
            remedy="set validation.fraction above 0 (default 0.1), or keep_weights: last",
        )


def check_first_weights(
    kind: str,
    init: str | None,
    model: ModelConfig | None,
    *,
    needs_init: bool,
    from_stage: bool,
    pretrained_data: Literal["any", "imagenet-1k"],
) -> None:
    """Checks that the sources of the first weights and of the network are given.

    Args:
        kind: kind of the stage.
        init: source of the first weights.
        model: network.
        needs_init: the kind of stage cannot start from random weights by default.
        from_stage: `init` names a stage.
        pretrained_data: data that the weights of a timm tag may have seen.

    Raises:
        UserError: `init` or `model` is missing, the normaliser of a tag is asked for without a tag, or the weights
            have seen other data than the recipe allows.
    """
    if needs_init and init is None:
        raise UserError(
            f"a {kind} stage starts from the weights of another stage",
            where="init",
            remedy="name the stage, or write random, timm:<tag> or file:<path>",
        )
    if model is None and not from_stage:
        raise UserError(
            "no network is named, and init names no stage to take it from",
            where="model",
            remedy="add model: {name: convnext_tiny, stem: patch}",
        )
    if model is not None and model.normalize == "tag" and not (init or "").startswith("timm:"):
        raise UserError(
            "only weights of a timm tag name their normaliser",
            where="model.normalize",
            value="tag",
            remedy="give mean and deviation, leave it out for raw pixels, or set init: timm:<tag>",
        )
    if pretrained_data == "imagenet-1k":
        _check_tag(init or "")


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
        "these weights were not trained on ImageNet-1k alone, but pretrained_data is imagenet-1k",
        where="init",
        value=init,
        remedy=f"take timm:{f'{network}.' if network else ''}{near}, or set pretrained_data: any",
    )
