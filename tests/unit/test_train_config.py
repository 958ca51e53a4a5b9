"""What a training stage refuses, and in which words."""

import pytest
from pydantic import ValidationError

from components.fingerprint import fingerprinted
from components.train.config import (
    CONFIGS,
    AdversarialConfig,
    AttackConfig,
    ConvStemConfig,
    PretrainConfig,
    RadiusConfig,
    TransferConfig,
)


def _adversarial(**change):
    return AdversarialConfig.model_validate({"data": "digits", "init": "convstem", **change})


@pytest.mark.parametrize(
    ("written", "meant"), [("4/255", 4 / 255), ("8 / 255", 8 / 255), ("0.5", 0.5), (0.25, 0.25), (1, 1.0)]
)
def test_a_radius_is_a_fraction_or_a_number(written, meant):
    assert AttackConfig.model_validate({"eps": written}).eps == meant


def test_l1_and_l2_radii_of_the_paper_are_accepted():
    assert AttackConfig(norm="L1", eps=75).eps == 75
    assert AttackConfig(norm="L2", eps=2).eps == 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"attack": {"eps": 4}}, ["attack.eps", "4.0", "4/255"]),
        ({"attack": {"norm": "L2", "eps": 510}}, ["attack.eps", "510", "255"]),
        ({"attack": {"eps": "4/0"}}, ["eps", "4/255", "4/0"]),
        ({"attack": {"eps": "four"}}, ["eps", "four"]),
        ({"attack": {"eps": -0.1}}, ["eps", "greater than 0"]),
        ({"attack": {"norm": "L3"}}, ["norm", "Linf", "L2", "L1"]),
        ({"attack": {"steps": 0}}, ["steps", "0"]),
        ({"attack": {"kind": "fgsm", "norm": "L2"}}, ["attack.kind", "apgd"]),
        ({"attack": None}, ["attack", "needs an attack"]),
        ({"label_smoothing": 0.5}, ["label_smoothing", "0.5", "0.1"]),
        ({"label_smoothing": 1.0}, ["label_smoothing", "1.0", "0.1"]),
        ({"batch_size": 63, "mixup": 0.8}, ["batch_size", "63", "multiple of 2"]),
        ({"batch_size": 66, "workers": 3, "cutmix": 1.0}, []),
        ({"batch_size": 63, "workers": 3, "cutmix": 1.0}, ["batch_size", "63", "multiple of 6"]),
        ({"batch_size": 64, "workers": 3}, ["batch_size", "64", "multiple of 3"]),
        ({"epochs": 10, "warmup_epochs": 10}, ["warmup_epochs", "10.0", "less than epochs"]),
        ({"lr": 1e-6}, ["lr_min", "5e-06"]),
        ({"betas": [0.9, 1.0]}, ["betas", "[0, 1)"]),
        ({"crop_scale": [1.0, 0.5]}, ["crop_scale", "smaller first"]),
        ({"init": None}, ["init", "adversarial", "random"]),
        ({"init": "tim:fb_in1k"}, ["init", "tim", "timm"]),
        ({"init": "random"}, ["model", "convnext_tiny"]),
        ({"epoch": 5}, ["epoch", "Extra inputs"]),
        ({"lr": float("nan")}, ["lr", "finite"]),
    ],
)
def test_refusals_name_field_value_and_remedy(change, parts):
    if not parts:
        _adversarial(**change)
        return
    with pytest.raises(ValidationError) as caught:
        _adversarial(**change)
    for part in parts:
        assert part in str(caught.value)


def test_which_stages_give_the_first_weights():
    assert _adversarial().init_stage == "convstem"
    assert PretrainConfig(data="digits").init_stage is None
    assert PretrainConfig(data="digits", init="timm:fb_in1k").init_stage is None


def test_defaults_are_the_papers():
    config = _adversarial()
    assert (config.betas, config.weight_decay, config.lr, config.lr_min, config.ema_decay) == (
        (0.9, 0.95),
        0.05,
        1e-3,
        5e-6,
        0.9999,
    )
    assert config.attack == AttackConfig(norm="Linf", eps=4 / 255, steps=2, form="best")
    radius = RadiusConfig(data="imagenet", init="adversarial")
    assert radius.attack is not None
    assert radius.attack.eps == 8 / 255
    assert ConvStemConfig(data="imagenet", init="pretrain").attack is None
    assert TransferConfig(data="flowers", init="adversarial").attack is None


def test_evaluation_crops_large_images_only():
    assert _adversarial(resolution=224).center_crop == 0.875
    assert _adversarial(resolution=32).center_crop == 1.0
    assert _adversarial(resolution=32, eval_crop=0.9).center_crop == 0.9


def test_every_field_says_what_it_is():
    for config in CONFIGS.values():
        for part in (
            config,
            *(f.annotation for f in config.model_fields.values() if hasattr(f.annotation, "model_fields")),
        ):
            for name, field in part.model_fields.items():
                assert field.description, f"{part.__name__}.{name}"


def test_what_cannot_change_the_result_is_left_out_of_the_fingerprint():
    one = fingerprinted(_adversarial())
    other = _adversarial(
        workers=2, loader="native", threads=3, checkpoint_minutes=1, device="cpu", checkpoint_seconds=0
    )
    assert fingerprinted(other) == one
    assert fingerprinted(_adversarial(lr=2e-3)) != one
    assert fingerprinted(_adversarial(attack={"steps": 3})) != one
