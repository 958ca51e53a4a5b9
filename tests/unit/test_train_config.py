"""What a training stage refuses, and its messages."""

import dataclasses
import importlib

import pytest
import torch
from pydantic import ValidationError

from components.attack.training_attacks import TRAINING_ATTACKS, AttackSettings
from components.errors import UserError
from components.fingerprint import fingerprinted
from components.threats import NORMS, check_radius
from components.train.batch import attack_at, mixed
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
    assert AttackConfig(norm="L1", eps=1500).eps == 1500
    assert AttackConfig(norm="L2", eps=40).eps == 40
    wide = _adversarial(validation={"norm": "L1", "eps": 75, "extra_norms": {"L2": 4, "Linf": 1}})
    assert wide.validation.extra_norms == {"L2": 4, "Linf": 1}


@pytest.mark.parametrize("norm", NORMS)
def test_the_papers_radii_fit_and_255_times_them_do_not(norm):
    paper = {"Linf": 4 / 255, "L2": 2.0, "L1": 75.0}[norm]
    for radius in (paper, 2 * paper, 20 * paper if norm != "Linf" else 1.0):
        check_radius(norm, radius, where="eps")
    for slip in (255 * paper, 255 * paper / 12.7):
        with pytest.raises(UserError, match=r"0-255 units"):
            check_radius(norm, slip if norm != "Linf" else 255 * paper, where="eps")


@pytest.mark.parametrize(
    ("at", "share"), [(0.0, None), (0.025, 0.0025), (2.5, 0.25), (5.0, 0.5), (9.99, 0.999), (10.0, 1.0), (40.0, 1.0)]
)
def test_the_radius_grows_linearly_and_then_stays(at, share):
    """Debenedetti et al., 2209.07399: linear from 0 over 10 epochs."""
    config = _adversarial(
        attack={"eps": 8 / 255, "eps_warmup_epochs": 10, "steps": 3, "loss": "trades", "trades_beta": 5}
    )
    attack = attack_at(config, at)
    if share is None:
        assert attack is None, "a radius of 0 is a clean step"
        return
    assert attack is not None
    assert attack.eps == pytest.approx(share * 8 / 255, rel=1e-12)
    assert (attack.norm, attack.steps, attack.loss, attack.trades_beta, attack.centre) == (
        "Linf",
        3,
        "trades",
        5,
        "clamped",
    )


def test_every_setting_of_an_attack_reaches_the_step():
    """A new attack's setting is a field of both; only the warm-up and the ball's centre are one-sided."""
    settings = {field.name for field in dataclasses.fields(AttackSettings)}
    assert settings - {"centre"} == set(AttackConfig.model_fields) - {"eps_warmup_epochs"}
    attack = attack_at(_adversarial(attack={"name": "fgsm", "steps": 1, "random_start": False, "fgsm_alpha": 2}), 0.0)
    assert attack == AttackSettings("Linf", 4 / 255, 1, name="fgsm", random_start=False, fgsm_alpha=2.0)


@pytest.mark.parametrize("name", TRAINING_ATTACKS)
def test_every_training_attack_has_its_function(name):
    module, _, function = TRAINING_ATTACKS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_without_a_warm_up_the_radius_is_whole_from_the_first_step():
    attack = attack_at(_adversarial(), 0.0)
    assert attack is not None
    assert attack.eps == 4 / 255
    assert attack_at(ConvStemConfig(data="imagenet", init="pretrain"), 3.0) is None


@pytest.mark.parametrize(
    ("change", "smoothing", "hflip_share"),
    [
        ({}, 0.1, 0.5),
        ({"augment": "none"}, 0.1, 0.0),
        ({"match_released_code": True}, 0.0, 0.0),
        ({"match_released_code": True, "augment": "heavy", "mixup": 0.8}, 0.1, 0.5),
        ({"match_released_code": True, "cutmix": 1.0}, 0.1, 0.0),
        ({"match_released_code": True, "augment": "heavy", "mixup": 0.8, "mixup_prob": 0}, 0.0, 0.5),
    ],
)
def test_what_the_released_code_leaves_out_without_mixing_and_heavy_augmentation(change, smoothing, hflip_share):
    config = _adversarial(**change)
    assert (config.smoothing, config.hflip_share) == (smoothing, hflip_share)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    _, targets = mixed(config, images, labels, classes=4, seed=0, epoch=0, batch=0)
    if smoothing == 0:
        assert torch.equal(targets, labels)
    else:
        assert float(targets.min()) == pytest.approx(smoothing / 4)


def test_the_released_codes_ball_lies_around_pixels_as_they_are():
    attack = attack_at(_adversarial(match_released_code=True), 0.0)
    assert attack is not None
    assert attack.centre == "given"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"attack": {"eps": 4}}, ["attack.eps", "4.0", "4/255"]),
        ({"attack": {"norm": "L2", "eps": 510}}, ["attack.eps", "510", "255", "write 510/255, which is 2."]),
        ({"attack": {"norm": "L2", "eps": 64}}, ["attack.eps", "got 64.0", "which is 0.251"]),
        ({"attack": {"norm": "L1", "eps": 75 * 255}}, ["attack.eps", "got 19125.0", "0-255 units", "which is 75."]),
        ({"validation": {"eps": 4}}, ["validation.eps", "got 4.0", "write 4/255"]),
        ({"validation": {"eps": 4}, "attack": {"norm": "Linf"}}, ["validation.eps", "write 4/255"]),
        ({"validation": {"norm": "L2", "eps": 510}}, ["validation.eps", "got 510.0", "which is 2."]),
        ({"validation": {"eps": 510}, "attack": {"norm": "L2", "eps": 2}}, ["validation.eps", "which is 2."]),
        ({"validation": {"extra_norms": {"L2": 510}}}, ["validation.extra_norms.L2", "got 510.0", "which is 2."]),
        ({"validation": {"extra_norms": {"L1": 19125}}}, ["validation.extra_norms.L1", "got 19125.0", "which is 75."]),
        ({"validation": {"extra_norms": {"L1": 0}}}, ["validation.extra_norms.L1", "above 0"]),
        ({"validation": {"norm": "L2"}}, ["validation.eps", "of Linf, not of L2", "give the L2 radius"]),
        ({"keep_weights": "best", "validation": {"fraction": 0}}, ["keep_weights", "held out", "validation.fraction"]),
        (
            {"attack": {"loss": "trades", "name": "fgsm", "steps": 1}},
            ["attack.loss", "got 'trades'", "fgsm cannot raise this loss", "name: apgd"],
        ),
        (
            {"attack": {"eps_warmup_epochs": 20}, "epochs": 20},
            ["attack.eps_warmup_epochs", "got 20.0", "less than epochs (20)"],
        ),
        ({"attack": {"eps_warmup_epochs": 30}, "epochs": 20}, ["attack.eps_warmup_epochs", "got 30.0"]),
        ({"attack": {"eps_warmup_epochs": 1}, "epochs": 1}, ["attack.eps_warmup_epochs", "less than epochs (1)"]),
        ({"attack": {"eps_warmup_epochs": 19.5}, "epochs": 20}, []),
        (
            {"init": "file:weights.pt", "model": {"normalize": "tag"}},
            ["model.normalize", "got 'tag'", "timm tag", "init: timm:<tag>"],
        ),
        ({"init": "timm:fb_in1k", "model": {"normalize": "tag"}}, []),
        ({"init": "timm:fb_in1k", "model": {"normalize": "imagenet"}}, ["model.normalize", "imagenet"]),
        ({"attack": {"eps": "4/0"}}, ["eps", "4/255", "4/0"]),
        ({"attack": {"eps": "four"}}, ["eps", "four"]),
        ({"attack": {"eps": -0.1}}, ["eps", "greater than 0"]),
        ({"attack": {"norm": "L3"}}, ["norm", "Linf", "L2", "L1"]),
        ({"attack": {"steps": 0}}, ["steps", "0"]),
        ({"attack": {"name": "fgsm", "norm": "L2"}}, ["attack.name", "norm: Linf, steps: 1", "apgd"]),
        ({"attack": {"name": "fgsm"}}, ["attack.name", "Linf, 2 steps", "steps: 1"]),
        ({"attack": {"name": "fgms"}}, ["attack.name", "did you mean 'fgsm'", "apgd, fgsm"]),
        ({"attack": None}, ["attack", "needs an attack"]),
        ({"label_smoothing": 0.5}, ["label_smoothing", "0.5", "0.1"]),
        ({"label_smoothing": 1.0}, ["label_smoothing", "1.0", "0.1"]),
        ({"batch_size": 63, "mixup": 0.8}, ["batch_size", "63", "multiple of 2"]),
        ({"batch_size": 66, "num_workers": 3, "cutmix": 1.0}, []),
        ({"batch_size": 63, "num_workers": 3, "cutmix": 1.0}, ["batch_size", "63", "multiple of 6"]),
        ({"batch_size": 64, "num_workers": 3}, ["batch_size", "64", "multiple of 3"]),
        ({"epochs": 10, "warmup_epochs": 10}, ["warmup_epochs", "10.0", "less than epochs"]),
        ({"lr": 1e-6}, ["min_lr", "5e-06"]),
        ({"betas": [0.9, 1.0]}, ["betas", "[0, 1)"]),
        ({"scale": [1.0, 0.5]}, ["scale", "smaller first"]),
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
    assert (config.betas, config.weight_decay, config.lr, config.min_lr, config.ema_decay) == (
        (0.9, 0.95),
        0.05,
        1e-3,
        5e-6,
        0.9999,
    )
    assert config.attack == AttackConfig(norm="Linf", eps=4 / 255, steps=2, return_iterate="best")
    radius = RadiusConfig(data="imagenet", init="adversarial")
    assert radius.attack is not None
    assert radius.attack.eps == 8 / 255
    assert ConvStemConfig(data="imagenet", init="pretrain").attack is None
    assert TransferConfig(data="flowers", init="adversarial").attack is None


def test_evaluation_crops_large_images_only():
    assert _adversarial(resolution=224).center_crop == 0.875
    assert _adversarial(resolution=32).center_crop == 1.0
    assert _adversarial(resolution=32, crop_pct=0.9).center_crop == 0.9


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
        num_workers=2,
        loader="native",
        num_threads=3,
        checkpoint_interval_s=60,
        device="cpu",
        checkpoint_min_interval_s=0,
    )
    assert fingerprinted(other) == one
    assert fingerprinted(_adversarial(lr=2e-3)) != one
    assert fingerprinted(_adversarial(attack={"steps": 3})) != one
