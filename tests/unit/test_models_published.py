"""Published checkpoints: the layouts of the released files, made here from our own networks, open strictly."""

from __future__ import annotations

import re

import pytest
import torch

from components.errors import UserError
from components.models import IMAGENET_NORMALIZE, build_model, load_published, network
from components.models.published import PUBLISHED, choose_normalizer
from components.models.weights import sha256_file

DRIFTED = (0.48495230078697205, 0.4560000002384186, 0.40598925948143005)
"""Mean inside the published ViT-S-CvSt, moved by its averaging (paper facts: 0.485, 0.456, 0.406 before)."""


def _meta_names(state):
    """Names of Meta's isotropic network, in which the published ConvNeXt-iso was saved."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"conv_dw", "dwconv", name)
        renamed[re.sub(r"mlp\.fc([12])", r"pwconv\1", name)] = tensor
    return renamed


def _file(path, model, prefix, mean=None):
    """Write `model` in the layout of the released files."""
    state = network(model).state_dict()
    if path.stem.startswith("convnext_iso"):
        state = _meta_names(state)
    if mean is not None:
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        state["normalize.mean"] = torch.tensor(mean).view(1, 3, 1, 1)
        state["normalize.std"] = torch.tensor(IMAGENET_NORMALIZE[1]).view(1, 3, 1, 1)
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)
    return path


def _model(name, stem, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, stem=stem, **options).eval()


@pytest.mark.parametrize("prefix", ["base_model.", "module.base_model.", ""])
def test_a_raw_file_opens_bare(tmp_path, prefix):
    model = _model("convnext_tiny", "conv")
    back, card = load_published(_file(tmp_path / "convnext_tiny_cvst_robust.pt", model, prefix))
    assert (card.name, card.stem, card.num_classes, card.resolution, card.normalize) == (
        "convnext_tiny",
        "conv",
        1000,
        224,
        None,
    )
    assert card.details["sha256"] == sha256_file(tmp_path / "convnext_tiny_cvst_robust.pt")
    assert not back.training
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())


@pytest.mark.parametrize("file", ["vit_s_cvst_robust.pt", "convnext_iso_cvst_robust.pt"])
def test_a_normalised_file_brings_its_own_constants(tmp_path, file):
    known = PUBLISHED[file.removesuffix(".pt")]
    model = _model(known.name, known.stem, normalize=(DRIFTED, IMAGENET_NORMALIZE[1]))
    back, card = load_published(_file(tmp_path / file, model, "base_model.", mean=DRIFTED))
    assert card.normalize is not None
    assert card.normalize[0] == DRIFTED
    assert card.normalize[1] == pytest.approx(IMAGENET_NORMALIZE[1])
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(back(images), model(images))


def test_names_of_the_released_files():
    """The stem names that the released files hold, written down from the facts and not from the code."""
    with torch.device("meta"):
        names = {name: set(build_model(name, stem="conv").state_dict()) for name in ("convnext_tiny", "convnext_base", "vit_small", "convnext_iso")}  # fmt: skip
    stem = {name: {int(m[1]) for key in keys if (m := re.match(r"(?:stem|patch_embed\.proj)\.stem\.(\d+)\.(?:weight|bias)$", key))} for name, keys in names.items()}  # fmt: skip
    assert stem == {"convnext_tiny": {0, 1, 3, 4}, "convnext_base": {0, 1, 3, 4, 6, 7}, "vit_small": {0, 1, 3, 4, 6, 7, 9, 10, 12}, "convnext_iso": {0, 1, 3, 4, 6, 7, 9, 10, 12}}  # fmt: skip
    assert "patch_embed.proj.stem.12.weight" in names["vit_small"]
    assert not any("gamma" in name for name in names["convnext_iso"])


@pytest.fixture
def micro(tmp_path):
    model = _model("convnext_micro", "conv", num_classes=6)

    def write(mean=None, prefix="base_model.", change=None, name="mine.pt"):
        path = _file(tmp_path / name, model, prefix, mean)
        if change:
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, path)
        return path

    return write


def _open(path, **options):
    return load_published(path, **{"name": "convnext_micro", "stem": "conv", **options})


def test_name_and_stem_can_be_given(micro):
    model, card = _open(micro(mean=IMAGENET_NORMALIZE[0]))
    assert card.num_classes == 6
    assert card.normalize is not None
    assert card.normalize[0] == pytest.approx(IMAGENET_NORMALIZE[0])
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 6)


def test_half_precision_becomes_single(micro):
    def halve(state):
        state.update({name: tensor.half() for name, tensor in state.items()})

    assert {parameter.dtype for parameter in _open(micro(change=halve))[0].parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("base_model.head.fc.bias"), r"1 missing \(head.fc.bias\)"),
        (lambda s: s.update({"base_model.extra": torch.zeros(1)}), r"1 unknown \(extra\)"),
        (lambda s: s.update({"stray": torch.zeros(1)}), r"missing .* unknown"),
        (lambda s: s.update({"base_model.stem.stem.0.bias": torch.zeros(3)}), "of another shape"),
        (lambda s: s.update({"epoch": 3}), "does not hold a state dict"),
        (lambda s: s.clear(), "does not hold a state dict"),
        (lambda s: s.update({"base_model.normalize.mean": torch.zeros(3)}), "a normaliser"),
    ],
)
def test_a_file_that_does_not_fit_exactly_is_refused(micro, change, message):
    with pytest.raises(UserError, match=message):
        _open(micro(change=change))


def test_a_normaliser_where_there_should_be_none_is_refused(tmp_path):
    model = _model("convnext_tiny", "conv", depths=[1, 1, 1, 1])
    path = _file(tmp_path / "convnext_tiny_cvst_robust.pt", model, "base_model.", mean=DRIFTED)
    with pytest.raises(UserError, match="holds no normaliser, this one does"):
        load_published(path)
    path = _file(tmp_path / "vit_s_cvst_robust.pt", _model("convnext_micro", "conv"), "base_model.")
    with pytest.raises(UserError, match="holds a normaliser, this one does not"):
        load_published(path)


def test_a_published_file_is_recognised_by_its_name_when_a_recipe_names_the_network_too(tmp_path):
    options = {"name": "vit_small", "stem": "conv", "kwargs": {"depth": 1}}
    model = _model("vit_small", "conv", depth=1)
    path = _file(tmp_path / "vit_s_cvst_robust.pt", model, "base_model.")
    with pytest.raises(UserError, match="holds a normaliser, this one does not"):
        load_published(path, **options)
    with pytest.raises(UserError, match="holds vit_small with stem conv"):
        load_published(path, **{**options, "stem": "patch"})


def test_options_of_the_network_reach_the_loader(tmp_path):
    model = _model("convnext_iso", "conv", depth=2, dim=24)
    path = _file(tmp_path / "mine.pt", model, "base_model.")
    _, card = load_published(path, name="convnext_iso", stem="conv", kwargs={"depth": 2, "dim": 24})
    assert card.kwargs == {"depth": 2, "dim": 24}
    with pytest.raises(UserError, match="of another shape"):
        load_published(path, name="convnext_iso", stem="conv")


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        (("state_dict",), "state_dict"),
        (("model",), "model"),
        (("model", "model_ema"), "model_ema"),
        (("model_state_dict", "optimizer_state_dict", "epoch", "state_dict_ema"), "state_dict_ema"),
    ],
)
def test_the_state_dict_of_a_checkpoint_is_found_and_the_average_is_taken(micro, keys, taken):
    path = micro()
    state = torch.load(path, weights_only=True)
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    document = {key: state if key == taken else other for key in keys}
    document.update(
        {key: value for key, value in (("epoch", 3), ("optimizer_state_dict", {"state": {}})) if key in keys}
    )
    torch.save(document, path)
    back, card = _open(path)
    assert torch.equal(back.state_dict()["head.fc.weight"], state["base_model.head.fc.weight"])
    held = [key for key in keys if key not in ("epoch", "optimizer_state_dict")]
    assert (card.details["state"], sorted(card.details["states"])) == (taken, sorted(held))
    assert card.source == f"published file mine.pt, {taken}" + (
        f" (of {', '.join(card.details['states'])})" if len(held) > 1 else ""
    )


def test_metas_isotropic_network_opens_with_the_recipes_normaliser(tmp_path):
    """Meta's file: bare names of its original code under `model`, and no normaliser."""
    model = _model("convnext_iso", "patch", depth=2, dim=24)
    path = tmp_path / "convnext_iso_small_1k_224_ema.pth"
    torch.save({"model": _meta_names(model.state_dict())}, path)
    back, card = load_published(path, name="convnext_iso", stem="patch", kwargs={"depth": 2, "dim": 24})
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert choose_normalizer(card, IMAGENET_NORMALIZE, where=str(path)) == IMAGENET_NORMALIZE


def test_the_average_of_a_wrapped_model_opens(micro):
    """timm's ModelEmaV2 adds a `module.` before that of DistributedDataParallel."""
    assert _open(micro(prefix="module.module.base_model."))[1].num_classes == 6


def test_a_checkpoint_without_a_known_state_names_what_it_holds(micro):
    path = micro()
    torch.save({"weights": torch.load(path, weights_only=True), "epoch": 3}, path)
    with pytest.raises(UserError, match=r"it holds weights, epoch.*state_dict_ema"):
        _open(path)


IMAGENET_TEXT = r"\[0.485, 0.456, 0.406\], \[0.229, 0.224, 0.225\]"


def test_the_normaliser_inside_is_taken_and_another_one_is_refused(micro):
    card = _open(micro(mean=DRIFTED))[1]
    assert choose_normalizer(card, None, where="mine.pt") == card.normalize
    assert choose_normalizer(card, (DRIFTED, IMAGENET_NORMALIZE[1]), where="mine.pt") == card.normalize
    with pytest.raises(UserError, match=rf"mine\.pt holds the normaliser \[0.484952.*{IMAGENET_TEXT}.*leave model"):
        choose_normalizer(card, IMAGENET_NORMALIZE, where="mine.pt")


def test_a_normaliser_for_a_raw_model_is_refused(micro, tmp_path):
    card = _open(micro())[1]
    assert choose_normalizer(card, None, where="mine.pt") is None
    with pytest.raises(UserError, match=rf"is for raw pixels .*{IMAGENET_TEXT}"):
        choose_normalizer(card, IMAGENET_NORMALIZE, where="mine.pt")
    bare = _file(tmp_path / "convnext_tiny_cvst_robust.pt", _model("convnext_tiny", "conv", depths=[1, 1, 1, 1]), "")
    card = load_published(bare, name="convnext_tiny", stem="conv", kwargs={"depths": [1, 1, 1, 1]})[1]
    with pytest.raises(UserError, match="is for raw pixels"):
        choose_normalizer(card, IMAGENET_NORMALIZE, where="mine.pt")


def test_clean_weights_without_a_normaliser_take_the_recipes(micro):
    """Files of timm and Meta hold bare names and no normaliser, but were trained on normalised images."""
    card = _open(micro(prefix=""))[1]
    assert choose_normalizer(card, IMAGENET_NORMALIZE, where="mine.pt") == IMAGENET_NORMALIZE


def test_an_unknown_file_needs_a_name(micro):
    with pytest.raises(UserError, match="give name and stem"):
        load_published(micro())


def test_the_digest_is_checked_where_given(micro):
    path = micro()
    assert _open(path, sha256=sha256_file(path))[1].details["sha256"] == sha256_file(path)
    with pytest.raises(UserError, match="sha256"):
        _open(path, sha256="0" * 64)


@pytest.mark.parametrize("content", [b"", b"not a torch file", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "mine.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.pt"):
        _open(path)
    with pytest.raises(UserError, match="no such file"):
        _open(tmp_path / "absent.pt")
