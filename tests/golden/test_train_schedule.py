"""Learning rates and parameter groups of the paper's code, as numbers."""

import pytest
import timm
import torch

import components.models  # noqa: F401  (registers the networks)
from components.train.optimizer import build_optimizer, decayed, is_convolutional, learning_rate

PAPER = {"lr": 1e-3, "min_lr": 5e-6}


@pytest.mark.parametrize(
    ("position", "peak", "epochs", "expected"),
    [
        (0, 10, 50, 1e-7),
        (0.5, 10, 50, 5.0095e-5),
        (1, 10, 50, 1.0009e-4),
        (10, 10, 50, 1e-3),
        (30, 10, 50, 5.025e-4),
        (50, 10, 50, 5e-6),
        (0, 20, 300, 1e-7),
        (20, 20, 300, 1e-3),
        (160, 20, 300, 5.025e-4),
        (300, 20, 300, 5e-6),
        # Linear inside an epoch, between the cosine's values at its ends.
        (10.5, 10, 50, (1e-3 + 9.984664e-4) / 2),
        (49.25, 10, 50, 0.75 * 6.5336264678e-06 + 0.25 * 5e-6),
    ],
)
def test_learning_rate(position, peak, epochs, expected):
    assert learning_rate(position, peak=peak, epochs=epochs, **PAPER) == pytest.approx(expected, rel=1e-6)


def test_learning_rate_without_warmup_and_with_one_epoch():
    assert learning_rate(0, peak=0, epochs=10, **PAPER) == 1e-3
    assert 0 < learning_rate(0.5, peak=0, epochs=1, **PAPER) < 1e-3


def _meta(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [("convnext_tiny_cvst", 102, 84), ("vit_small_cvst", 56, 112), ("vit_medium_cvst", 56, 136)],
)
def test_faithful_groups(name, yes, no):
    """Counts measured on the released code: T-CvSt, DeiT-S-CvSt, ViT-M-CvSt."""
    decide = decayed(_meta(name), "released_code", convolutional=is_convolutional(name))
    assert (sum(decide.values()), len(decide) - sum(decide.values())) == (yes, no)


def test_faithful_groups_decay_what_the_code_decays():
    convolutional = decayed(_meta("convnext_tiny_cvst"), "released_code", convolutional=True)
    assert convolutional["stages.0.blocks.0.gamma"]
    assert convolutional["head.norm.weight"]
    transformer = decayed(_meta("vit_small_cvst"), "released_code", convolutional=False)
    assert transformer["pos_embed"]
    assert transformer["cls_token"]
    assert not transformer["norm.weight"]


@pytest.mark.parametrize("name", ["convnext_tiny_cvst", "vit_small_cvst", "vit_medium_cvst"])
def test_sane_groups_decay_matrices_only(name):
    model = _meta(name)
    decide = decayed(model, "standard", convolutional=is_convolutional(name))
    assert set(decide) == {n for n, _ in model.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        special = parameter_name in ("pos_embed", "cls_token")
        assert decide[parameter_name] == (parameter.ndim > 1 and not special), parameter_name


def test_optimizer_has_every_parameter_once_and_the_papers_settings():
    model = _meta("vit_small_cvst")
    optimizer = build_optimizer(
        model, no_weight_decay="released_code", convolutional=False, betas=(0.9, 0.95), weight_decay=0.05
    )
    groups = {group["weight_decay"]: group for group in optimizer.param_groups}
    assert {decay: len(group["params"]) for decay, group in groups.items()} == {0.05: 56, 0.0: 112}
    assert len({id(p) for group in groups.values() for p in group["params"]}) == 168
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 for group in groups.values())
