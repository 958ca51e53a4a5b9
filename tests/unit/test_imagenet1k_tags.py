"""One rule for "trained on ImageNet-1k alone": the same answer when a recipe is checked and when weights are loaded."""

import pytest
from pydantic import ValidationError

from components.errors import UserError
from components.imagenet1k_tags import OTHER_DATA, is_imagenet1k, other_data_in
from components.models import check_imagenet1k_tag
from components.train.config import PretrainConfig

GOOD = ["convnext_tiny.fb_in1k", "vit_base_patch16_224.augreg_in1k", "resnet50.tv2_in1k", "fb_in1k"]
BAD = [
    *(f"net.{data}_in1k" for data in OTHER_DATA),
    "net.ns_in1k",
    "net.fb_in22k_ft_in1k",
    "net.ft_in1k",
    "net.IN12K_in1k",
    "convnext_tiny",
    "vit_base_patch16_224.mae",
]


@pytest.mark.parametrize("tag", GOOD)
def test_tags_of_imagenet1k_pass_in_both_places(tag):
    assert is_imagenet1k(tag)
    assert check_imagenet1k_tag(tag) == tag
    PretrainConfig.model_validate(recipe(tag))


@pytest.mark.parametrize("tag", BAD)
def test_other_tags_are_refused_in_both_places(tag):
    assert not is_imagenet1k(tag)
    with pytest.raises(UserError, match="not from ImageNet-1k alone"):
        check_imagenet1k_tag(tag)
    with pytest.raises(ValidationError, match="not trained on ImageNet-1k alone"):
        PretrainConfig.model_validate(recipe(tag))


@pytest.mark.parametrize("data", OTHER_DATA)
def test_the_other_data_are_named(data):
    assert other_data_in(f"net.{data}x_in1k") == [f"{data}x"]


def recipe(tag):
    name = next(name for name, field in PretrainConfig.model_fields.items() if "imagenet-1k" in str(field.annotation))
    return {"data": "imagenet", "init": f"timm:{tag}", "model": {"name": "convnext_tiny"}, name: "imagenet-1k"}
