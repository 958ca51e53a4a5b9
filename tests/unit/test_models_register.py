"""What timm knows after `import components.models`, and that it knows everything else as before."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from components.errors import UserError
from components.models import REGISTERED
from components.models.convstem import ConvStem, find_stem

CVST = [
    f"{name}_cvst"
    for name in (
        "convnext_tiny",
        "convnext_small",
        "convnext_base",
        "convnext_large",
        "convnext_iso",
        "vit_small",
        "vit_medium",
        "vit_base",
        "convnext_micro",
    )
]

REGISTRY_UNTOUCHED = """
import warnings
warnings.simplefilter("error", UserWarning)
import timm
from timm.models import _registry as registry
def snapshot():
    return dict(registry._model_entrypoints), dict(registry._model_pretrained_cfgs), {k: list(v) for k, v in registry._model_with_tags.items()}
before = snapshot()
import components.models
after = snapshot()
new = set(components.models.REGISTERED)
assert not new & set(before[0]), new & set(before[0])
assert set(after[0]) - set(before[0]) == new
for old, now in zip(before, after):
    assert all(now[key] is old[key] or now[key] == old[key] for key in old)
    assert set(now) - set(old) <= new
print("untouched", len(before[0]))
"""


def test_timms_own_networks_stay_unchanged():
    run = subprocess.run([sys.executable, "-c", REGISTRY_UNTOUCHED], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 1000


def test_the_names_are_those_of_the_design():
    assert set(REGISTERED) == {*CVST, "convnext_iso", "convnext_micro"}


@pytest.mark.parametrize("name", [*CVST, "convnext_iso", "convnext_micro"])
def test_timm_creates_it_with_the_right_data_config(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    side = 32 if "micro" in name else 224
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, side, side)
    raw = name.startswith(("convnext_micro", "vit_base")) or name in (
        "convnext_tiny_cvst",
        "convnext_small_cvst",
        "convnext_base_cvst",
        "convnext_large_cvst",
    )
    assert config["mean"] == ((0.0, 0.0, 0.0) if raw else (0.485, 0.456, 0.406))
    assert config["std"] == ((1.0, 1.0, 1.0) if raw else (0.229, 0.224, 0.225))
    assert config["interpolation"] == "bicubic"
    assert isinstance(find_stem(model), ConvStem) is name.endswith("_cvst")
    assert model.get_submodule(model.pretrained_cfg["classifier"]).out_features == 7
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), torch.nn.Conv2d)
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="convnext_micro_cvst: timm has no weights"):
        timm.create_model("convnext_micro_cvst", pretrained=True)


def test_features_come_through_the_conv_stem():
    model = timm.create_model("convnext_micro_cvst", features_only=True)
    assert [tuple(f.shape[1:]) for f in model(torch.rand(1, 3, 32, 32))] == [
        (32, 8, 8),
        (48, 4, 4),
        (64, 2, 2),
        (96, 1, 1),
    ]
