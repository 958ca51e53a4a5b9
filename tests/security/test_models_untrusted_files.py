"""A checkpoint from elsewhere cannot run code: neither a pickle nor a model card that points to one."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from components.errors import UserError
from components.models import ModelCard, build_model, load_model, load_published, save_model


class _Harm:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_is_not_executed(tmp_path, write):
    path, sign = tmp_path / "mine.pt", tmp_path / "executed"
    write({"base_model.stem.weight": torch.zeros(1), "x": _Harm(sign)}, path)
    with pytest.raises(UserError, match="not a readable file of plain weights"):
        load_published(path, name="convnext_micro", stem="conv")
    assert not sign.exists()


@pytest.mark.parametrize(
    "option", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg", "cache_dir", "pretrained"]
)
def test_a_card_cannot_name_files(tmp_path, option):
    card = ModelCard("convnext_micro", "conv", num_classes=2, resolution=32)
    save_model(tmp_path, build_model("convnext_micro", stem="conv", num_classes=2), card)
    torch.save({"x": _Harm(tmp_path / "executed")}, tmp_path / "evil.pt")
    document = json.loads((tmp_path / "model.json").read_text())
    document["kwargs"] = {option: str(tmp_path / "evil.pt")}
    (tmp_path / "model.json").write_text(json.dumps(document))
    with pytest.raises(UserError):
        load_model(tmp_path)
    assert not (tmp_path / "executed").exists()
