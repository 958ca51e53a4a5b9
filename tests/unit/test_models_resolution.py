"""Other image sides: position embeddings that are truly resampled, and sides that are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from components.errors import UserError
from components.models import build_model, network, set_resolution


def _vit(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(name, stem="conv", num_classes=3, depth=1, **options).eval()
    # Smooth, clearly non-zero embeddings that differ along both axes, beside a class token of another size.
    vit = network(model)
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 14), torch.linspace(2, 4, 14), indexing="ij"))
    with torch.no_grad():
        position = grid.flatten(1).sum(0)[:, None].expand(196, vit.embed_dim)
        prefix = vit.pos_embed.shape[1] - 196
        vit.pos_embed.copy_(torch.cat([torch.full((prefix, vit.embed_dim), 9.0), position])[None])
    return model


@pytest.mark.parametrize(("name", "prefix"), [("vit_small", 1), ("vit_medium", 0), ("vit_base", 1)])
@pytest.mark.parametrize("normalize", [None, "imagenet"])
def test_vit_at_another_resolution(name, prefix, normalize):
    model = _vit(name, normalize=normalize)
    trained = network(model).pos_embed.detach().clone()
    with pytest.raises(AssertionError, match="doesn't match"):
        model(torch.rand(1, 3, 160, 160))
    assert set_resolution(model, 160) is model
    position = network(model).pos_embed
    assert position.shape == (1, prefix + 100, trained.shape[2])
    assert position.requires_grad
    assert torch.equal(position[:, :prefix], trained[:, :prefix])
    grid = position[0, prefix:, 0].detach().reshape(10, 10)
    assert torch.all(grid.diff(dim=0) > 0)
    assert torch.all(grid.diff(dim=1) > 0)
    assert grid.mean().item() == pytest.approx(3.0, abs=1e-3)
    expected = resample_abs_pos_embed(trained, new_size=[10, 10], old_size=[14, 14], num_prefix_tokens=prefix)
    torch.testing.assert_close(position.detach(), expected)
    assert model(torch.rand(1, 3, 160, 160)).shape == (1, 3)


def test_changing_the_resolution_often_is_like_changing_it_once():
    once, often = _vit("vit_small"), _vit("vit_small")
    original = copy.deepcopy(often.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        noise = torch.randn_like(once.pos_embed)
        once.pos_embed.copy_(noise)
        often.pos_embed.copy_(noise)
        original["pos_embed"] = noise
    set_resolution(once, 256)
    for side in (64, 160, 256):
        set_resolution(often, side)
    assert torch.equal(once.pos_embed, often.pos_embed)
    set_resolution(often, 224)
    assert all(torch.equal(tensor, original[key]) for key, tensor in often.state_dict().items())


def test_embeddings_trained_after_the_change_are_kept():
    model = set_resolution(_vit("vit_small"), 64)
    with torch.no_grad():
        model.pos_embed.fill_(0.25)
    set_resolution(model, 96)
    torch.testing.assert_close(model.pos_embed.detach(), torch.full((1, 37, 384), 0.25))


@pytest.mark.parametrize("name", ["convnext_micro", "convnext_iso"])
def test_convolutional_networks_need_nothing(name):
    model = build_model(name, stem="conv", num_classes=3, **({"depth": 1} if name == "convnext_iso" else {}))
    before = copy.deepcopy(model.state_dict())
    for side in (32, 64, 96):
        assert set_resolution(model, side)(torch.rand(1, 3, side, side)).shape == (1, 3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "side"), [("convnext_micro", 31), ("vit_small", 200), ("convnext_iso", 40), ("vit_small", 0)]
)
def test_sides_that_do_not_fit_are_refused(name, side):
    with torch.device("meta"):
        model = build_model(name, num_classes=3)
    with pytest.raises(UserError, match="resolution"):
        set_resolution(model, side)
