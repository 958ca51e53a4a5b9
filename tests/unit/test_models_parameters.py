"""Parameter counts of the nine PatchStem/ConvStem pairs, exactly, without allocating a network."""

from __future__ import annotations

import pytest
import torch

from components.models import build_model

PAIRS = {
    "convnext_iso": ({}, 22_308_712, 23_035_624),
    "convnext_iso, width 432": ({"dim": 432}, 28_083_160, 28_791_640),
    "convnext_tiny": ({}, 28_589_128, 28_627_432),
    "convnext_small": ({}, 50_223_688, 50_261_992),
    "convnext_base": ({}, 88_591_464, 88_753_416),
    "convnext_large": ({}, 197_767_336, 198_134_680),
    "vit_small": ({}, 22_050_664, 22_777_576),
    "vit_medium": ({}, 38_849_512, 39_527_272),
    "vit_base": ({}, 86_567_656, 87_147_112),
}


def _count(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(name, **options).parameters())


@pytest.mark.parametrize("label", PAIRS)
def test_parameters_of_the_papers_networks(label):
    kwargs, patch, conv = PAIRS[label]
    name = label.partition(",")[0]
    assert _count(name, stem="patch", **kwargs) == patch
    assert _count(name, stem="conv", **kwargs) == conv


def test_parameters_of_the_small_network():
    assert _count("convnext_micro", stem="patch", num_classes=10) == 340_378
    # 3 -> 16 -> 32 with norms, less the 4x4 patches with theirs.
    conv_stem = (3 * 9 * 16 + 16) + 2 * 16 + (16 * 9 * 32 + 32) + 2 * 32
    assert _count("convnext_micro", stem="conv", num_classes=10) == 340_378 + conv_stem - (3 * 16 * 32 + 32 + 2 * 32)
