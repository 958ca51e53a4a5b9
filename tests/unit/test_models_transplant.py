"""Weights from one stage into the next one's network: copied tensors, initial values that stay, and refusals."""

from __future__ import annotations

import pytest
import torch

from components.errors import UserError
from components.models import build_model, network, transplant


def _build(name: str, seed: int, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(name, **{"num_classes": 4, **options})


SMALL = [("convnext_micro", "stem.", "head.fc.", {}), ("vit_small", "patch_embed.proj.", "head.", {"depth": 1}), ("vit_medium", "patch_embed.proj.", "head.", {"depth": 1}), ("convnext_iso", "stem.", "head.", {"depth": 1})]  # fmt: skip


@pytest.mark.parametrize(("name", "stem", "head", "kwargs"), SMALL)
@pytest.mark.parametrize("change", ["nothing", "stem", "classes", "both"])
def test_fresh_is_exactly_what_differs(name, stem, head, kwargs, change):
    source = _build(name, 1, **kwargs)
    classes = 7 if change in ("classes", "both") else 4
    target = _build(name, 2, num_classes=classes, stem="conv" if change in ("stem", "both") else "patch", **kwargs)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    fresh = transplant(source.state_dict(), target)
    parts = {"nothing": (), "stem": (stem,), "classes": (head,), "both": (stem, head)}[change]
    assert fresh == sorted(key for key in before if parts and key.startswith(parts))
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[key] if key in fresh else source.state_dict()[key]), key


@pytest.mark.parametrize(
    ("source_norm", "target_norm"), [("imagenet", None), (None, "imagenet"), ("imagenet", "imagenet")]
)
def test_a_normaliser_on_either_side_changes_nothing(source_norm, target_norm):
    source = _build("convnext_micro", 1, normalize=source_norm)
    target = _build("convnext_micro", 2, normalize=target_norm)
    assert transplant(source.state_dict(), target) == []
    assert all(
        torch.equal(tensor, network(source).state_dict()[key]) for key, tensor in network(target).state_dict().items()
    )


@pytest.mark.parametrize("name", ["vit_small", "vit_medium"])
def test_position_embeddings_follow_the_resolution(name):
    source = _build(name, 1, depth=1)
    target = _build(name, 2, depth=1, resolution=64)
    assert transplant(source.state_dict(), target) == []
    grid = target.pos_embed[:, -16:].detach()
    old = source.pos_embed[:, -196:].detach()
    assert target.pos_embed.shape[1] == (17 if name == "vit_small" else 16)
    assert 0.1 * old.norm() / old.numel() ** 0.5 < grid.norm() / grid.numel() ** 0.5 < old.norm() / old.numel() ** 0.5
    torch.testing.assert_close(grid.mean(), old.mean(), atol=2e-4, rtol=0)


def test_another_network_is_refused_and_nothing_is_copied():
    target = _build("convnext_micro", 2)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(
        UserError, match=r"init: the weights do not fit the network: \d+ missing \(.*, \.\.\.\); \d+ unknown"
    ):
        transplant(_build("convnext_iso", 1, depth=1).state_dict(), target)
    with pytest.raises(UserError, match="of another shape"):
        transplant(_build("convnext_micro", 1, dims=[32, 48, 64, 80]).state_dict(), target)
    state = _build("convnext_micro", 1).state_dict()
    part = {key: tensor for key, tensor in state.items() if "stages.1.blocks.0.norm" not in key}
    with pytest.raises(UserError, match="2 missing"):
        transplant(part, target)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())
