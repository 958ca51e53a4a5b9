"""The values of the recipes of the paper's models, written down once more from what is known of the paper and its code.

The tables are not made from the recipes: a recipe that drifts from them fails. Deviations of ours are named as such.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.recipe import load, names

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

META_ISO = "file:./convnext_iso_small_1k_224_ema.pth"

MODELS: dict[str, tuple[str, str, int, int, Any, Any]] = {
    # recipe: network, timm or Meta's weights, epochs and warm-up of adversarial training, normaliser of PatchStem and of ConvStem
    "convnext-iso": ("convnext_iso", META_ISO, 300, 20, IMAGENET, None),
    "convnext-iso-cvst": ("convnext_iso", META_ISO, 300, 20, IMAGENET, IMAGENET),
    "convnext-tiny": ("convnext_tiny", "convnext_tiny.fb_in1k", 300, 20, IMAGENET, None),
    "convnext-tiny-cvst": ("convnext_tiny", "convnext_tiny.fb_in1k", 300, 20, IMAGENET, None),
    "convnext-small": ("convnext_small", "convnext_small.fb_in1k", 50, 10, IMAGENET, None),
    "convnext-small-cvst": ("convnext_small", "convnext_small.fb_in1k", 50, 10, IMAGENET, None),
    "convnext-base": ("convnext_base", "convnext_base.fb_in1k", 50, 10, IMAGENET, None),
    "convnext-base-cvst": ("convnext_base", "convnext_base.fb_in1k", 250, 20, IMAGENET, None),
    "convnext-large": ("convnext_large", "convnext_large.fb_in1k", 100, 10, IMAGENET, None),
    "convnext-large-cvst": ("convnext_large", "convnext_large.fb_in1k", 100, 10, IMAGENET, None),
    "vit-small": ("vit_small", "deit_small_patch16_224.fb_in1k", 300, 20, IMAGENET, None),
    "vit-small-cvst": ("vit_small", "deit_small_patch16_224.fb_in1k", 300, 20, IMAGENET, IMAGENET),
    "vit-medium": ("vit_medium", "deit3_medium_patch16_224.fb_in1k", 50, 10, IMAGENET, None),
    "vit-medium-cvst": ("vit_medium", "deit3_medium_patch16_224.fb_in1k", 50, 10, IMAGENET, None),
    "vit-base": ("vit_base", "vit_base_patch16_224.augreg_in1k", 50, 10, HALF, None),
    "vit-base-cvst": ("vit_base", "vit_base_patch16_224.augreg_in1k", 250, 20, HALF, None),
}
OPTIMISER = {
    "lr": 1e-3,
    "min_lr": 5e-6,
    "betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "ema_decay": 0.9999,
    "batch_size": 640,
    "clip_grad": None,
    "drop_path": 0.0,
}
HEAVY = {
    "augment": "heavy",
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "label_smoothing": 0.1,
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.5,
    "resolution": 224,
    "precision": "auto",
    "match_released_code": False,
    "no_weight_decay": "standard",
}
LINF, L2, L1 = ("Linf", 4 / 255), ("L2", 2.0), ("L1", 75.0)
ATTACKS = {"adversarial": LINF, "radius-8": ("Linf", 8 / 255), "radius-l2": L2, "radius-l1": L1}
OTHERS = {"adversarial": (L2, L1), "radius-8": (L2, L1), "radius-l2": (LINF, L1), "radius-l1": (LINF, L2)}
EVALUATIONS = {
    "evaluate": ("adversarial", (LINF, L2, L1)),
    "evaluate-8": ("radius-8", (("Linf", 8 / 255),)),
    "evaluate-l2": ("radius-l2", (LINF, L2, L1)),
    "evaluate-l1": ("radius-l1", (LINF, L2, L1)),
}


def fields(config: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return {field: getattr(config, field) for field in wanted}


def test_the_table_holds_all_recipes_of_the_paper() -> None:
    assert set(MODELS) == {name for name, path in names().items() if path.parent.name == "paper"}


@pytest.mark.parametrize("name", MODELS)
def test_clean_weights(name: str) -> None:
    network, weights, _, _, patch, conv = MODELS[name]
    stages = load(name).stages
    clean = stages["pretrain"].config
    assert (clean.model.name, clean.model.stem, clean.model.normalize) == (network, "patch", patch)
    init = weights if weights == META_ISO else f"timm:{weights}"
    assert (clean.init, clean.pretrained_data, clean.epochs) == (init, "imagenet-1k", 0)
    assert ("convstem" in stages) == name.endswith("-cvst")
    if "convstem" in stages:
        tuned = stages["convstem"].config
        assert (tuned.model.name, tuned.model.stem, tuned.model.normalize) == (network, "conv", conv)
        assert (tuned.init, tuned.epochs, tuned.warmup_epochs, tuned.attack) == ("pretrain", 100, 10, None)
        assert fields(tuned, OPTIMISER | HEAVY) == OPTIMISER | HEAVY


@pytest.mark.parametrize("stage", ATTACKS)
@pytest.mark.parametrize("name", MODELS)
def test_robust_training(name: str, stage: str) -> None:
    epochs, warmup = MODELS[name][2:4] if stage == "adversarial" else (20, 5)
    config = load(name).stages[stage].config
    start = ("convstem" if name.endswith("-cvst") else "pretrain") if stage == "adversarial" else "adversarial"
    assert (config.init, config.model, config.epochs, config.warmup_epochs) == (start, None, epochs, warmup)
    assert fields(config, OPTIMISER | HEAVY) == OPTIMISER | HEAVY
    attack = config.attack
    assert (attack.norm, attack.eps) == pytest.approx(ATTACKS[stage])
    assert (attack.name, attack.steps, attack.return_iterate) == ("apgd", 2, "best")
    assert (attack.loss, attack.eps_warmup_epochs) == ("ce", 0)
    validation = config.validation
    assert (config.keep_weights, validation.every_epochs, validation.max_images) == ("best", 2, 4000)
    assert (validation.steps, validation.norm, validation.eps) == (10, None, None)
    assert validation.extra_norms == pytest.approx(dict(OTHERS[stage]))


@pytest.mark.parametrize("name", MODELS)
def test_evaluation(name: str) -> None:
    stages = load(name).stages
    evaluations = {key for key, stage in stages.items() if stage.kind.name == "evaluate"}
    assert evaluations == set(EVALUATIONS)
    for key, (model, threats) in EVALUATIONS.items():
        config = stages[key].config
        assert (config.model, config.num_images, config.split, config.resolution) == (model, 5000, "val", None)
        assert (config.data, config.images) == ("originals", "robustbench")
        assert [(one.norm, one.eps) for one in config.threats] == [pytest.approx(one) for one in threats]
        assert {(one.attack, one.num_images) for one in config.threats} == {("autoattack", None)}
    sweep = stages["sweep"].config
    assert (sweep.data, sweep.images) == ("originals", "robustbench")
    transformer = MODELS[name][0].startswith(("vit", "convnext_iso"))
    assert sweep.resolutions == ((224, 256, 288) if transformer else (224, 256, 288, 320))
    assert [(one.norm, one.eps, one.attack) for one in sweep.threats] == [("Linf", 4 / 255, "apgd-ce+apgd-t")]
    encode = stages["imagenet"].config
    assert (encode.max_short_side, encode.mode, encode.quality) == (256, "jpg", 90)
    originals = stages["originals"].config
    assert (originals.source, originals.keep_jpeg, originals.max_val_images) == (encode.source, True, None)
    assert originals.max_short_side == 4096, "no validation image of ImageNet is shrunk"


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row[1] != META_ISO])
def test_normalisers_are_those_of_timms_tags(name: str) -> None:
    timm = pytest.importorskip("timm")
    pinned = timm.get_pretrained_cfg(MODELS[name][1])
    assert pinned is not None
    assert (tuple(pinned.mean), tuple(pinned.std)) == MODELS[name][4]
