"""Networks: timm's ConvNeXt and ViT with PatchStem or ConvStem, built by name, saved and loaded.

`build` makes a network, `weights` saves and loads it with its model card, `published` reads other people's checkpoints,
`transplant` moves weights into a network with another stem or head, `resolution` changes the image side. Importing this
package registers the ConvStem networks with timm (`register`).
"""

from __future__ import annotations

from components.models import register as _register
from components.models.build import build_model, forward_macs, tag_classes, tag_normalize
from components.models.convstem import find_stem, replace_stem, stem_prefix
from components.models.families import FAMILIES, IMAGENET1K_TAGS, IMAGENET_NORMALIZE, check_imagenet1k_tag, find_family
from components.models.normalize import NormalizedModel, network
from components.models.published import choose_normalizer, load_published
from components.models.resolution import set_resolution
from components.models.transplant import transplant
from components.models.weights import ModelCard, load_model, read_card, save_model

REGISTERED = tuple(_register.default_cfgs)
"""Names that this package adds to timm."""

__all__ = [
    "FAMILIES",
    "IMAGENET1K_TAGS",
    "IMAGENET_NORMALIZE",
    "REGISTERED",
    "ModelCard",
    "NormalizedModel",
    "build_model",
    "check_imagenet1k_tag",
    "choose_normalizer",
    "find_family",
    "find_stem",
    "forward_macs",
    "load_model",
    "load_published",
    "network",
    "read_card",
    "replace_stem",
    "save_model",
    "set_resolution",
    "stem_prefix",
    "tag_classes",
    "tag_normalize",
    "transplant",
]
