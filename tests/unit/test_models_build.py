"""Building by name: seeds, the normaliser, pretrained tags, refused options, and the published sizes and costs."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry as registry

from components.errors import UserError
from components.models import (
    FAMILIES,
    IMAGENET1K_TAGS,
    IMAGENET_NORMALIZE,
    build_model,
    check_imagenet1k_tag,
    find_stem,
    forward_macs,
    network,
    stem_prefix,
    tag_normalize,
)


def _micro(seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("convnext_micro", **{"stem": "conv", "num_classes": 10, **options}).eval()


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_same_seed_gives_the_same_weights(stem):
    assert _equal(_micro(3, stem=stem), _micro(3, stem=stem))
    assert not _equal(_micro(3, stem=stem), _micro(4, stem=stem))


def test_the_normaliser_is_the_first_layer():
    raw, normalized = _micro(), _micro(normalize="imagenet")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET_NORMALIZE)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(normalized(images), raw((images - mean) / std))
    assert not torch.allclose(normalized(images), raw(images), atol=1e-3)
    given = _micro(normalize=((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    expected = raw(
        (images - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    )
    torch.testing.assert_close(given(images), expected)


def test_no_average_of_weights_can_move_the_normaliser():
    model = _micro(normalize="imagenet")
    assert all(name.startswith("model.") for name in model.state_dict())
    average = timm.utils.ModelEmaV2(model, decay=0.9999)
    for _ in range(50):
        average.update(model)
    constants = dict(average.module.named_buffers())
    assert torch.equal(constants["normalize.mean"].flatten(), torch.tensor(IMAGENET_NORMALIZE[0]))
    assert torch.equal(constants["normalize.std"].flatten(), torch.tensor(IMAGENET_NORMALIZE[1]))
    assert network(model) is model.model


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_there_is_no_stochastic_depth_unless_asked_for(name):
    def drops(rate: float) -> list[float]:
        with torch.device("meta"):
            model = build_model(name, stem="conv", num_classes=2, drop_path=rate)
        return [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]

    assert drops(0.0) == []
    assert max(drops(0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "convnext_tinny"}, "did you mean 'convnext_tiny'"),
        ({"name": "convnext_tiny_cvst"}, "write name 'convnext_tiny' and stem 'conv'"),
        ({"stem": "convstem"}, "model.stem: there is no such stem"),
        ({"num_classes": 0}, "num_classes"),
        ({"resolution": 16}, "resolution: .* at least 32"),
        ({"name": "vit_small", "resolution": 100}, "a multiple of 16"),
        ({"dept": 3}, "did you mean 'depth'"),
        ({"embed_dim": 32}, "cannot be built with these options"),
        ({"dims": [32, 48]}, "cannot be built with these options"),
        ({"checkpoint_path": "weights.pt"}, "no such option"),
        ({"pretrained_cfg_overlay": {"file": "weights.pt"}}, "no such option"),
        ({"pretrained": "fb_in1k"}, "no such weights"),
        ({"name": "vit_small", "pretrained": "fb_in22k"}, "use one of: fb_in1k"),
        ({"name": "vit_small", "pretrained": "vit_small_patch16_224.augreg_in1k"}, "no such weights"),
    ],
)
def test_options_that_cannot_be_built_are_one_line(options, message):
    with torch.device("meta"), pytest.raises(UserError, match=message) as error:
        build_model(**{"name": "convnext_micro", "num_classes": 4, **options})
    assert "\n" not in str(error.value)


@pytest.fixture
def local_deit(tmp_path, monkeypatch):
    """timm's tag of DeiT-S, served from a file of ours instead of the network; depth is set to 1 by the callers."""
    torch.manual_seed(11)
    source = timm.create_model("deit_small_patch16_224", depth=1)
    torch.nn.init.normal_(source.head.bias)
    path = tmp_path / "deit.safetensors"
    save_file(source.state_dict(), path)
    tag = "deit_small_patch16_224.fb_in1k"
    local = dataclasses.replace(timm.get_pretrained_cfg(tag), file=str(path), url="", hf_hub_id=None)
    monkeypatch.setitem(registry._model_pretrained_cfgs, tag, local)
    return source.state_dict()


@pytest.mark.parametrize("tag", ["fb_in1k", "deit_small_patch16_224.fb_in1k"])
def test_a_tag_fills_everything_but_the_conv_stem(local_deit, tag):
    torch.manual_seed(0)
    state = build_model("vit_small", stem="conv", pretrained=tag, depth=1).state_dict()
    shared = [key for key in state if not key.startswith("patch_embed.proj.")]
    assert {key for key in local_deit if not key.startswith("patch_embed.proj.")} == set(shared)
    assert all(torch.equal(state[key], local_deit[key]) for key in shared)


def test_a_tag_with_another_number_of_classes_leaves_the_head_fresh(local_deit):
    state = build_model("vit_small", num_classes=5, pretrained="fb_in1k", depth=1).state_dict()
    assert state["head.weight"].shape == (5, 384)
    assert all(torch.equal(state[key], local_deit[key]) for key in state if not key.startswith("head."))


def test_a_tag_at_another_resolution_is_resampled(local_deit):
    model = build_model("vit_small", pretrained="fb_in1k", depth=1, resolution=256)
    assert model.pos_embed.shape == (1, 1 + 16 * 16, 384)
    assert torch.equal(model.pos_embed[:, 0], local_deit["pos_embed"][:, 0])


def test_weights_that_cannot_be_loaded_are_one_clear_message(tmp_path, monkeypatch):
    tag = "deit_small_patch16_224.fb_in1k"
    absent = dataclasses.replace(
        timm.get_pretrained_cfg(tag), file=str(tmp_path / "absent.safetensors"), url="", hf_hub_id=None
    )
    monkeypatch.setitem(registry._model_pretrained_cfgs, tag, absent)
    with pytest.raises(UserError, match="could not be loaded"):
        build_model("vit_small", pretrained="fb_in1k", depth=1)


def test_pinned_tags_exist_and_are_imagenet1k():
    assert {
        **{f"convnext_{size}": f"convnext_{size}.fb_in1k" for size in ("tiny", "small", "base", "large")},
        "vit_small": "deit_small_patch16_224.fb_in1k",
        "vit_medium": "deit3_medium_patch16_224.fb_in1k",
        "vit_base": "vit_base_patch16_224.augreg_in1k",
    } == IMAGENET1K_TAGS
    for tag in IMAGENET1K_TAGS.values():
        assert timm.is_model_pretrained(tag)
        assert check_imagenet1k_tag(tag) == tag


@pytest.mark.parametrize("tag", ["fb_in1k", "resnet50.a1_in1k", "vit_base_patch16_224.sam_in1k", "resnet50.tv2_in1k"])
def test_tags_of_imagenet1k_pass(tag):
    assert check_imagenet1k_tag(tag) == tag


@pytest.mark.parametrize(
    "tag",
    ["convnext_tiny", "convnext_tiny.in12k_ft_in1k", "convnext_tiny.fb_in22k", "convnext_base.fb_in22k_ft_in1k_384", "vit_base_patch16_224.mae", "convnext_base.clip_laion2b_augreg_ft_in1k", "tf_efficientnet_b0.ns_jft_in1k", "convnext_tiny.dinov3_lvd1689m", ""],
)  # fmt: skip
def test_other_tags_are_refused(tag):
    with pytest.raises(UserError, match="not from ImageNet-1k alone"):
        check_imagenet1k_tag(tag)


def test_no_tag_that_timm_describes_as_pretrained_elsewhere_passes():
    def passes(tag: str) -> bool:
        try:
            return bool(check_imagenet1k_tag(tag))
        except UserError:
            return False

    elsewhere = ("in12k", "in21k", "in22k", "laion", "jft", "openai", "lvd", "ig1b", "yfcc")
    assert [tag for tag in timm.list_pretrained() if passes(tag) and any(word in tag for word in elsewhere)] == []


def test_a_tag_knows_its_own_normaliser():
    assert tag_normalize("convnext_tiny", "fb_in1k") == IMAGENET_NORMALIZE
    assert tag_normalize("vit_base", "augreg_in1k") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_where_the_stem_is():
    for name, prefix in (("convnext_micro", "stem."), ("convnext_iso", "stem."), ("vit_small", "patch_embed.proj.")):
        with torch.device("meta"):
            model = build_model(name, stem="conv", num_classes=2, normalize="imagenet")
        assert stem_prefix(model) == prefix
        assert find_stem(model) is network(model).get_submodule(prefix[:-1])


def test_a_model_can_be_copied():
    model = _micro(normalize="imagenet")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(copy.deepcopy(model)(images), model(images))


PARAMETERS = {
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


@pytest.mark.parametrize("label", PARAMETERS)
def test_parameters_of_the_papers_networks(label):
    kwargs, patch, conv = PARAMETERS[label]
    name = label.partition(",")[0]
    assert _count(name, stem="patch", **kwargs) == patch
    assert _count(name, stem="conv", **kwargs) == conv


def test_parameters_of_the_small_network():
    assert _count("convnext_micro", stem="patch", num_classes=10) == 340_378
    # 3 -> 16 -> 32 with norms, less the 4x4 patches with theirs.
    conv_stem = (3 * 9 * 16 + 16) + 2 * 16 + (16 * 9 * 32 + 32) + 2 * 32
    assert _count("convnext_micro", stem="conv", num_classes=10) == 340_378 + conv_stem - (3 * 16 * 32 + 32 + 2 * 32)


# (network, resolution, PatchStem, ConvStem) in 10^9; fvcore's count, which holds norms and activations too (+0.3 %).
GIGA_MACS = [
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


@pytest.mark.parametrize(("name", "resolution", "patch", "conv"), GIGA_MACS)
def test_macs_of_the_papers_networks(name, resolution, patch, conv):
    for stem, expected in (("patch", patch), ("conv", conv)):
        if expected is not None:
            with torch.device("meta"):
                model = build_model(name, stem=stem, resolution=resolution)
            assert forward_macs(model, resolution) / 1e9 == pytest.approx(expected, rel=4e-3)


def test_macs_of_a_stem_by_hand_and_the_model_is_unchanged():
    with_patch, with_conv = (
        build_model("convnext_micro", stem=stem, normalize="imagenet") for stem in ("patch", "conv")
    )
    before = {name: tensor.clone() for name, tensor in with_conv.named_parameters()}
    by_hand = 16 * 16 * 27 * 16 + 8 * 8 * 144 * 32 - 8 * 8 * 48 * 32
    assert forward_macs(with_conv, 32) - forward_macs(with_patch, 32) == by_hand
    assert all(torch.equal(tensor, before[name]) for name, tensor in with_conv.named_parameters())
