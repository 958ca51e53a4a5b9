"""Runs a model at another image side than it was trained at.

Position embeddings are resampled by timm's `resample_abs_pos_embed` (timm 1.0.31: bicubic, antialiased, in fp32). The
code released with the paper used another bicubic resampler. On smooth embeddings the two differ little, but accuracies
at other resolutions than the training one depend on this choice.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from components.errors import UserError
from components.models.iso import IsotropicConvNeXt
from components.models.normalize import network

SMALLEST_CONVNEXT = 32
"""Total stride of a four-stage ConvNeXt: smaller images leave no pixel in its last stage."""


def set_resolution(model: nn.Module, resolution: int) -> nn.Module:
    """Makes `model` take images of `resolution` x `resolution` pixels, in place.

    Fully convolutional networks need no change. A ViT's position embeddings are resampled from the trained ones, also
    if the resolution is changed several times; the position of a class token (DeiT3 has none) stays unchanged.

    Args:
        model: a network of this package, bare or with its normaliser.
        resolution: image side in pixels; a multiple of 16 for ViT and isotropic networks, at least 32 for ConvNeXt.

    Returns:
        The same object.

    Raises:
        UserError: the network cannot take images of that side.
    """
    body = network(model)
    multiple = 16 if isinstance(body, (VisionTransformer, IsotropicConvNeXt)) else 1
    smallest = multiple if multiple > 1 else SMALLEST_CONVNEXT
    check_resolution(resolution, multiple=multiple, smallest=smallest)
    if isinstance(body, VisionTransformer):
        _set_vit_resolution(body, resolution)
    return model


def check_resolution(resolution: int, *, multiple: int, smallest: int) -> None:
    """Refuses an image side that a network cannot take.

    Raises:
        UserError: it is too small, or not a multiple of the patch size.
    """
    if resolution < smallest or resolution % multiple:
        rule = f"a multiple of {multiple}" if multiple > 1 else f"at least {smallest}"
        raise UserError(
            "this network cannot take images of that side", where="resolution", value=resolution, remedy=f"give {rule}"
        )


def _set_vit_resolution(vit: Any, resolution: int) -> None:
    if vit.patch_embed.img_size == (resolution, resolution):
        return
    _restore_trained_position(vit)
    position, side = vit.pos_embed, vit.patch_embed.img_size
    vit.set_input_size(img_size=(resolution, resolution))
    if vit.pos_embed is not position and not position.is_meta:
        vit._trained_position = (position.detach(), side, vit.pos_embed.detach().clone())


def _restore_trained_position(vit: Any) -> None:
    # Resampling loses detail, so a second change starts from the trained embeddings again, unless the resampled
    # ones have been trained since.
    known: tuple[Any, Any, Any] = getattr(vit, "_trained_position", (None, None, None))
    trained, side, resampled = known
    if trained is not None and resampled is not None and torch.equal(resampled, vit.pos_embed.detach().to(resampled)):
        vit.patch_embed.set_input_size(img_size=side)
        vit.pos_embed = nn.Parameter(trained.detach().to(vit.pos_embed), requires_grad=vit.pos_embed.requires_grad)
