"""The stems against a transcription of their layouts in plain torch, written independently of the package."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from components.models import build_model, find_stem, replace_stem
from components.models.convstem import stem_s4_2, stem_s4_3, stem_s16

# (out, kernel, stride, padding, followed by norm and activation)
LAYOUTS = {
    "convnext_tiny": [(48, 3, 2, 1, True), (96, 3, 2, 1, True)],
    "convnext_small": [(48, 3, 2, 1, True), (96, 3, 2, 1, True)],
    "convnext_base": [(64, 3, 2, 1, True), (96, 3, 2, 1, True), (128, 3, 1, 1, True)],
    "convnext_large": [(96, 3, 2, 1, True), (144, 3, 2, 1, True), (192, 3, 1, 1, True)],
    "convnext_iso": [*((c, 3, 2, 1, True) for c in (48, 96, 192, 384)), (384, 1, 1, 0, False)],
    "vit_small": [*((c, 3, 2, 1, True) for c in (48, 96, 192, 384)), (384, 1, 1, 0, False)],
    "vit_medium": [*((c, 3, 2, 1, True) for c in (48, 96, 192, 384)), (512, 1, 1, 0, False)],
    "vit_base": [*((c, 3, 2, 1, True) for c in (48, 96, 192, 384)), (768, 1, 1, 0, False)],
    "convnext_micro": [(16, 3, 2, 1, True), (32, 3, 2, 1, True)],
}
SHALLOW = {
    "convnext_iso": {"depth": 1},
    "vit_small": {"depth": 1},
    "vit_medium": {"depth": 1},
    "vit_base": {"depth": 1},
}


def _stem(name: str) -> torch.nn.Module:
    kwargs = SHALLOW.get(name, {"depths": (1, 1, 1, 1)})
    with torch.device("meta"):
        stem = find_stem(build_model(name, stem="conv", num_classes=2, **kwargs))
    generator = torch.Generator().manual_seed(1)
    state = {
        k: torch.randn(v.shape, generator=generator) / math.sqrt(v[0].numel()) for k, v in stem.state_dict().items()
    }
    stem.load_state_dict(state, assign=True)
    return stem


def _transcription(images: torch.Tensor, state: dict[str, torch.Tensor], layout: list) -> torch.Tensor:
    x, index = images, 0
    for width, kernel, stride, padding, closed in layout:
        weight = state[f"stem.{index}.weight"]
        assert weight.shape == (width, x.shape[1], kernel, kernel)
        x = F.conv2d(x, weight, state[f"stem.{index}.bias"], stride=stride, padding=padding)
        index += 1
        if closed:
            mean = x.mean(dim=1, keepdim=True)
            variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
            scale, shift = state[f"stem.{index}.weight"], state[f"stem.{index}.bias"]
            x = (x - mean) / torch.sqrt(variance + 1e-6) * scale[:, None, None] + shift[:, None, None]
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
            index += 2
    assert len(state) == 2 * sum(2 if closed else 1 for *_, closed in layout)
    return x


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_stem_is_the_layout_of_the_paper(name):
    stem, layout = _stem(name), LAYOUTS[name]
    size = 32 if name == "convnext_micro" else 224
    # Dim images beside bright ones: a wrong eps only shows where the variance is small.
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1e-3]).view(
        2, 1, 1, 1
    )
    with torch.no_grad():
        ours = stem(images)
        # In float64: float32 rounds by up to 1e-5 on its own, one way on one processor and another way on the next.
        exact, theirs = stem.double()(images.double()), _transcription(images.double(), stem.state_dict(), layout)
    torch.testing.assert_close(exact, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=0)
    stride = 16 if layout[-1][1] == 1 else 4
    assert ours.shape == (2, layout[-1][0], size // stride, size // stride)


def test_eps_of_the_norms_is_seen_on_flat_images():
    stem = stem_s4_2(8)
    with torch.no_grad():
        for parameter in stem.stem[0].parameters():
            parameter.mul_(1e-2)
        images = torch.full((1, 3, 8, 8), 0.01)
        expected = _transcription(images, stem.state_dict(), [(4, 3, 2, 1, True), (8, 3, 2, 1, True)])
        torch.testing.assert_close(stem(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stem", "parameters"),
    [
        (stem_s4_2(96), 43_200),
        (stem_s4_3(128), 168_480),
        (stem_s4_3(192), 377_136),
        (stem_s16(384), 1_022_208),
        (stem_s16(432), 1_040_688),
        (stem_s16(512), 1_071_488),
        (stem_s16(768), 1_170_048),
    ],
)
def test_parameters_of_the_stems_alone(stem, parameters):
    assert sum(parameter.numel() for parameter in stem.parameters()) == parameters


def test_stems_keep_the_default_init_of_torch():
    torch.manual_seed(0)
    conv = find_stem(build_model("convnext_tiny", stem="conv", num_classes=2, depths=(1, 1, 1, 1))).stem[0]
    bound = 1 / math.sqrt(27)  # kaiming-uniform with a = sqrt(5): uniform within 1 / sqrt(fan in)
    assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert 0.8 * bound < conv.bias.abs().max().item() <= bound
    patch = find_stem(build_model("convnext_tiny", num_classes=2, depths=(1, 1, 1, 1)))[0]
    assert patch.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not patch.bias.any()


@pytest.mark.parametrize(("name", "kwargs"), [("convnext_micro", {}), ("vit_small", {"depth": 1})])
def test_replacing_the_stem_keeps_every_other_weight(name, kwargs):
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, normalize="imagenet", **kwargs)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert replace_stem(model) is model
    after = model.state_dict()
    kept = [key for key in after if key in before]
    assert kept
    assert all(torch.equal(after[key], before[key]) for key in kept)
    prefix = "model.stem." if name == "convnext_micro" else "model.patch_embed.proj."
    assert all(key.startswith(prefix) for key in set(before) ^ set(after))
