"""Multiply-accumulates against the published table, without computing a forward pass."""

from __future__ import annotations

import pytest
import torch

from components.models import build_model, forward_macs

# (network, resolution, PatchStem, ConvStem) in 10^9; fvcore's count, which holds norms and activations too (+0.3 %).
TABLE = [
    ("convnext_iso", 224, 4.293, 4.671),
    ("convnext_tiny", 224, 4.470, 4.601),
    ("convnext_tiny", 384, None, 13.52),
    ("convnext_small", 224, 8.705, 8.836),
    ("convnext_base", 256, None, 20.77),
    ("convnext_large", 224, 34.405, 35.576),
    ("vit_small", 224, 4.608, 4.986),
    ("vit_small", 288, None, 8.61),
    ("vit_medium", 224, 8.004, 8.372),
    ("vit_base", 224, 17.583, 17.931),
]


@pytest.mark.parametrize(("name", "resolution", "patch", "conv"), TABLE)
def test_macs_of_the_papers_networks(name, resolution, patch, conv):
    for stem, expected in (("patch", patch), ("conv", conv)):
        if expected is not None:
            with torch.device("meta"):
                model = build_model(name, stem=stem, resolution=resolution)
            assert forward_macs(model, resolution) / 1e9 == pytest.approx(expected, rel=4e-3)


def test_macs_of_a_stem_by_hand_and_the_model_is_left_alone():
    with_patch, with_conv = (
        build_model("convnext_micro", stem=stem, normalize="imagenet") for stem in ("patch", "conv")
    )
    before = {name: tensor.clone() for name, tensor in with_conv.named_parameters()}
    by_hand = 16 * 16 * 27 * 16 + 8 * 8 * 144 * 32 - 8 * 8 * 48 * 32
    assert forward_macs(with_conv, 32) - forward_macs(with_patch, 32) == by_hand
    assert all(torch.equal(tensor, before[name]) for name, tensor in with_conv.named_parameters())
