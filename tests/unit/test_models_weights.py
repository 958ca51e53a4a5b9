"""A saved model comes back bit for bit, or not at all."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.errors import UserError
from components.models import (
    IMAGENET_NORMALIZE,
    ModelCard,
    build_model,
    load_model,
    read_card,
    save_model,
    set_resolution,
)

CARD = ModelCard(
    "convnext_micro", "conv", num_classes=3, resolution=32, classes=("a", "b", "c"), crop_ratio=1.0, source="a test"
)


def _model(card: ModelCard = CARD, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(card.name, stem=card.stem, num_classes=card.num_classes, resolution=card.resolution, normalize=card.normalize, **card.kwargs)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path / "model", _model(), CARD)
    return tmp_path / "model"


CARDS = [
    CARD,
    dataclasses.replace(CARD, stem="patch", normalize=IMAGENET_NORMALIZE),
    dataclasses.replace(CARD, normalize=((0.48495230078697205, 0.456, 0.40598925948143005), (0.229, 0.224, 0.225))),
    ModelCard(
        "vit_small", "conv", num_classes=2, resolution=64, kwargs={"depth": 1}, details={"epochs": 3, "by": None}
    ),
    ModelCard("vit_medium", "patch", num_classes=2, resolution=64, kwargs={"depth": 1}, normalize=IMAGENET_NORMALIZE),
    ModelCard("convnext_iso", "conv", num_classes=2, resolution=64, kwargs={"depth": 1}),
    ModelCard("convnext_micro", "patch", num_classes=2, resolution=64, kwargs={"depths": [1, 1, 2, 1]}),
]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.name}-{card.stem}")
def test_round_trip_is_bit_exact(tmp_path, card):
    model = _model(card).eval()
    save_model(tmp_path, model, card)
    state = torch.get_rng_state()
    back, read = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state), "opening a model draws random numbers"
    assert read == card == read_card(tmp_path)
    assert not back.training
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), back.buffers(), strict=True))
    images = torch.rand(2, 3, card.resolution, card.resolution)
    with torch.no_grad():
        assert torch.equal(model(images), back(images))


def test_the_file_can_be_overwritten_under_an_open_model(saved):
    model, _ = load_model(saved)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    path = saved / "weights.safetensors"
    with path.open("r+b") as file:  # the same inode, in place
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_saving_replaces_and_leaves_nothing_else(saved):
    other = _model(seed=1)
    save_model(saved, other, dataclasses.replace(CARD, source="again"))
    back, card = load_model(saved)
    assert card.source == "again"
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), back.parameters(), strict=True))
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "weights.safetensors"]


def test_a_save_that_breaks_off_leaves_no_model(saved, monkeypatch):
    def full(_state, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("components.models.weights.save_file", full)
    with pytest.raises(UserError, match=r"could not be saved.*No space left"):
        save_model(saved, _model(seed=1), CARD)
    with pytest.raises(UserError, match=r"model.json cannot be read"):
        load_model(saved)
    assert [path.name for path in saved.iterdir()] == ["weights.safetensors"]


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", ["flip a weight", "flip the header", "truncate", "empty", "remove"])
def test_damaged_weights_are_refused(saved, harm):
    path = saved / "weights.safetensors"
    {
        "flip a weight": lambda: _flip(path, -5),
        "flip the header": lambda: _flip(path, 3),
        "truncate": lambda: path.write_bytes(path.read_bytes()[:-100]),
        "empty": lambda: path.write_bytes(b""),
        "remove": path.unlink,
    }[harm]()
    with pytest.raises(UserError, match=r"weights.safetensors"):
        load_model(saved)


def _rewrite(folder, change_weights=None, **fields):
    """Change the folder and give it a digest that holds, as a foreign tool would."""
    from components.models.weights import sha256_file

    if change_weights:
        state = load_file(folder / "weights.safetensors")
        change_weights(state)
        save_file(state, folder / "weights.safetensors")
    document = json.loads((folder / "model.json").read_text())
    document["weights"]["sha256"] = sha256_file(folder / "weights.safetensors")
    document.update(fields)
    (folder / "model.json").write_text(json.dumps(document))


def test_missing_and_unknown_names_are_named(saved):
    def change(state):
        state["stem.stem.9.weight"] = torch.zeros(1)
        del state["head.fc.bias"]

    _rewrite(saved, change)
    with pytest.raises(UserError, match=r"1 missing \(head.fc.bias\); 1 unknown \(stem.stem.9.weight\)"):
        load_model(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 4, "classes": []}, "of another shape"),
        ({"num_classes": 4}, "3 class names for 4 outputs"),
        ({"num_classes": "3"}, "num_classes"),
        ({"stem": "patch"}, "missing"),
        ({"name": "convnext_mikro"}, "did you mean 'convnext_micro'"),
        ({"format": 99}, "another format"),
        ({"colour": "red"}, "colour"),
        ({"normalize": [1, 2]}, "not a model card"),
        ({"kwargs": {"checkpoint_path": "evil.pt"}}, "no such option"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(saved, fields, message):
    _rewrite(saved, **fields)
    with pytest.raises(UserError, match=message):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_a_broken_card_is_refused(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        load_model(saved)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.json cannot be read"):
        load_model(tmp_path / "absent")


def test_a_card_of_another_network_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="do not fit"):
        save_model(tmp_path / "model", _model(), dataclasses.replace(CARD, stem="patch"))
    assert not (tmp_path / "model").exists()


def test_a_random_network_of_a_card_has_values():
    from components.models.weights import build_from_card

    assert not any(parameter.is_meta for parameter in build_from_card(CARD).parameters())


def test_an_opened_vit_takes_another_resolution(tmp_path):
    card = ModelCard("vit_small", "conv", num_classes=2, resolution=64, kwargs={"depth": 1})
    save_model(tmp_path, _model(card), card)
    model = load_model(tmp_path)[0]
    trained = model.pos_embed.detach().clone()
    assert set_resolution(model, 96)(torch.rand(1, 3, 96, 96)).shape == (1, 2)
    assert torch.equal(set_resolution(model, 64).pos_embed, trained)
