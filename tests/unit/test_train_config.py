"""What a training stage refuses, and in which words."""

import pytest
import torch
from pydantic import ValidationError

from components.errors import UserError
from components.fingerprint import fingerprinted
from components.threats import NORMS, check_radius
from components.train.batch import mixed, threat_at
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
    wide = _adversarial(probe={"norm": "L1", "eps": 75, "other_norms": {"L2": 4, "Linf": 1}})
    assert wide.probe.other_norms == {"L2": 4, "Linf": 1}


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
    config = _adversarial(attack={"eps": 8 / 255, "eps_warmup": 10, "steps": 3, "loss": "trades", "beta": 5})
    threat = threat_at(config, at)
    if share is None:
        assert threat is None, "a radius of 0 is a clean step"
        return
    assert threat is not None
    assert threat.eps == pytest.approx(share * 8 / 255, rel=1e-12)
    assert (threat.norm, threat.steps, threat.loss, threat.beta, threat.centre) == ("Linf", 3, "trades", 5, "clamped")


def test_without_a_warm_up_the_radius_is_whole_from_the_first_step():
    threat = threat_at(_adversarial(), 0.0)
    assert threat is not None
    assert threat.eps == 4 / 255
    assert threat_at(ConvStemConfig(data="imagenet", init="pretrain"), 3.0) is None


@pytest.mark.parametrize(
    ("change", "smoothing", "mirrored"),
    [
        ({}, 0.1, 0.5),
        ({"augment": "none"}, 0.1, 0.0),
        ({"faithful": True}, 0.0, 0.0),
        ({"faithful": True, "augment": "heavy", "mixup": 0.8}, 0.1, 0.5),
        ({"faithful": True, "cutmix": 1.0}, 0.1, 0.0),
        ({"faithful": True, "augment": "heavy", "mixup": 0.8, "mixup_prob": 0}, 0.0, 0.5),
    ],
)
def test_what_the_released_code_leaves_out_without_mixing_and_heavy_augmentation(change, smoothing, mirrored):
    config = _adversarial(**change)
    assert (config.smoothing, config.mirrored) == (smoothing, mirrored)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    _, targets = mixed(config, images, labels, classes=4, seed=0, epoch=0, batch=0)
    if smoothing == 0:
        assert torch.equal(targets, labels)
    else:
        assert float(targets.min()) == pytest.approx(smoothing / 4)


def test_the_released_codes_ball_lies_around_pixels_as_they_are():
    threat = threat_at(_adversarial(faithful=True), 0.0)
    assert threat is not None
    assert threat.centre == "given"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"attack": {"eps": 4}}, ["attack.eps", "4.0", "4/255"]),
        ({"attack": {"norm": "L2", "eps": 510}}, ["attack.eps", "510", "255", "write 510/255, which is 2."]),
        ({"attack": {"norm": "L2", "eps": 64}}, ["attack.eps", "got 64.0", "which is 0.251"]),
        ({"attack": {"norm": "L1", "eps": 75 * 255}}, ["attack.eps", "got 19125.0", "0-255 units", "which is 75."]),
        ({"probe": {"eps": 4}}, ["probe.eps", "got 4.0", "write 4/255"]),
        ({"probe": {"eps": 4}, "attack": {"norm": "Linf"}}, ["probe.eps", "write 4/255"]),
        ({"probe": {"norm": "L2", "eps": 510}}, ["probe.eps", "got 510.0", "which is 2."]),
        ({"probe": {"eps": 510}, "attack": {"norm": "L2", "eps": 2}}, ["probe.eps", "which is 2."]),
        ({"probe": {"other_norms": {"L2": 510}}}, ["probe.other_norms.L2", "got 510.0", "which is 2."]),
        ({"probe": {"other_norms": {"L1": 19125}}}, ["probe.other_norms.L1", "got 19125.0", "which is 75."]),
        ({"probe": {"other_norms": {"L1": 0}}}, ["probe.other_norms.L1", "above 0"]),
        ({"probe": {"norm": "L2"}}, ["probe.eps", "of Linf, not of L2", "give the L2 radius"]),
        ({"select": "best", "probe": {"fraction": 0}}, ["select", "held out", "probe.fraction"]),
        (
            {"attack": {"loss": "trades", "kind": "fgsm", "steps": 1}},
            ["attack.loss", "got 'trades'", "fgsm raises the cross-entropy", "kind: apgd"],
        ),
        ({"attack": {"eps_warmup": 20}, "epochs": 20}, ["attack.eps_warmup", "got 20.0", "less than epochs (20)"]),
        ({"attack": {"eps_warmup": 30}, "epochs": 20}, ["attack.eps_warmup", "got 30.0"]),
        ({"attack": {"eps_warmup": 1}, "epochs": 1}, ["attack.eps_warmup", "less than epochs (1)"]),
        ({"attack": {"eps_warmup": 19.5}, "epochs": 20}, []),
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
