"""What people get wrong about data and first weights: one message each, with place, value and remedy."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from components.errors import UserError
from components.train.config import AdversarialConfig, PretrainConfig
from components.train.initial_model import initial_model
from components.train.validation import describe_split
from tests.small_training import NETWORK, SMALL


def _pretrain(tag, **change):
    return PretrainConfig.model_validate(
        {"data": "imagenet", "init": f"timm:{tag}", "pretrained_data": "imagenet-1k", **change}
    )


@pytest.mark.parametrize("tag", ["convnext_tiny.fb_in1k", "fb_in1k", "vit_base_patch16_224.augreg_in1k", "augreg_in1k"])
def test_weights_of_imagenet_1k_are_taken(tag):
    assert _pretrain(tag).init == f"timm:{tag}"


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("convnext_tiny.fb_in22k", "timm:convnext_tiny.fb_in1k"),
        ("convnext_tiny.fb_in22k_ft_in1k_384", "timm:convnext_tiny.fb_in1k"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "timm:vit_base_patch16_224.augreg_in1k"),
        ("fb_in22k", "timm:fb_in1k"),
        ("convnext_tiny", "timm:convnext_tiny.fb_in1k"),
    ],
)
def test_weights_of_other_data_are_refused_with_the_nearest_that_fit(tag, near):
    with pytest.raises(ValidationError) as caught:
        _pretrain(tag)
    for part in ("init", tag, "ImageNet-1k", near, "pretrained_data: any"):
        assert part in str(caught.value)


def test_other_data_is_taken_where_the_recipe_does_not_mind():
    assert _pretrain("fb_in22k", pretrained_data="any").init == "timm:fb_in22k"


@pytest.fixture
def parent(tmp_path):
    """A saved model of 10 classes, as another stage's output."""
    from components.models import ModelCard, build_model, save_model

    card = ModelCard(name="convnext_micro", stem="conv", num_classes=10, resolution=32, kwargs=NETWORK["kwargs"])
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, **NETWORK["kwargs"])
    save_model(tmp_path / "model", model, card)
    return tmp_path


def _first(parent, kind, *, init, classes, **change):
    config = kind.model_validate({**SMALL, "init": init, "model": NETWORK, **change})
    job = SimpleNamespace(inputs={"init": SimpleNamespace(path=lambda name: parent / name)})
    return initial_model(job, config, SimpleNamespace(num_classes=classes, classes=()), seed=0)


@pytest.mark.parametrize("classes", [12, 7])
@pytest.mark.parametrize("from_file", [False, True], ids=["stage", "file"])
def test_a_head_that_is_kept_has_the_classes_of_the_data(parent, classes, from_file):
    init = f"file:{parent / 'model'}" if from_file else "pretrain"
    with pytest.raises(UserError) as caught:
        _first(parent, AdversarialConfig, init=init, classes=classes)
    for part in (f"{classes} classes", "10", "data", "'digits'", "transfer stage"):
        assert part in str(caught.value)


def test_and_is_taken_where_they_are_the_same(parent):
    assert _first(parent, AdversarialConfig, init="pretrain", classes=10).fresh == ()


def test_a_transfer_stage_starts_a_fresh_head(parent):
    from components.train.config import TransferConfig

    assert any("head" in name for name in _first(parent, TransferConfig, init="pretrain", classes=12).fresh)


@pytest.mark.parametrize("from_file", [False, True], ids=["stage", "file"])
@pytest.mark.parametrize("classes", [12, 7])
def test_a_fresh_classifier_that_nothing_would_train_is_refused(parent, classes, from_file):
    init = f"file:{parent / 'model'}" if from_file else "other"
    with pytest.raises(UserError) as caught:
        _first(parent, PretrainConfig, init=init, classes=classes, epochs=0)
    for part in (f"{classes} classes", "is for 10 classes", "epochs 0", "init", init, "fresh_head: true"):
        assert part in str(caught.value)
    assert any("head" in name for name in _first(parent, PretrainConfig, init=init, classes=classes, epochs=1).fresh)
    later = _first(parent, PretrainConfig, init=init, classes=classes, epochs=0, fresh_head=True)
    assert any("head" in name for name in later.fresh)
    assert _first(parent, PretrainConfig, init=init, classes=10, epochs=0).fresh == ()


def _of_tag(monkeypatch, tag, *, classes=1000, **change):
    """The arguments that the network of a tag is built with; nothing is fetched."""
    import torch

    from components.train import initial_model as loading

    asked = {}
    monkeypatch.setattr(loading, "build_model", lambda name, **given: asked.update(given) or torch.nn.Identity())
    config = PretrainConfig.model_validate(
        {"data": "digits", "init": f"timm:{tag}", "model": {"name": "vit_base"}, **change}
    )
    initial_model(SimpleNamespace(inputs={}), config, SimpleNamespace(num_classes=classes, classes=()), seed=0)
    return asked


@pytest.mark.parametrize(("tag", "theirs"), [("augreg_in21k", "is for 21843 classes"), ("mae", "is missing")])
def test_a_tags_classifier_for_other_classes_is_refused_where_nothing_is_trained(monkeypatch, tag, theirs):
    with pytest.raises(UserError) as caught:
        _of_tag(monkeypatch, tag, epochs=0)
    for part in ("1000 classes", theirs, "init", f"'timm:{tag}'", "fresh_head: true"):
        assert part in str(caught.value)
    assert _of_tag(monkeypatch, tag, epochs=0, fresh_head=True)["pretrained"] == tag
    assert _of_tag(monkeypatch, tag, epochs=20)["num_classes"] == 1000


def test_a_tags_classifier_that_fits_is_taken_as_it_is(monkeypatch):
    assert _of_tag(monkeypatch, "augreg_in1k", epochs=0)["pretrained"] == "augreg_in1k"
    with pytest.raises(UserError, match=r"10 classes.*is for 1000 classes"):
        _of_tag(monkeypatch, "augreg_in1k", epochs=0, classes=10)


@pytest.mark.parametrize(("tag", "mean"), [("augreg_in1k", 0.5), ("dino", 0.485)])
def test_a_tag_brings_its_own_normaliser(monkeypatch, tag, mean):
    model = {"name": "vit_base", "normalize": "tag"}
    built = _of_tag(monkeypatch, tag, epochs=20, model=model)["normalize"]
    assert built[0][0] == mean
    assert _of_tag(monkeypatch, tag, epochs=20)["normalize"] is None


def test_the_best_of_no_validations_is_refused_when_none_can_be_held_out():
    """A tenth of nine images is none."""
    config = PretrainConfig(data="digits", batch_size=2, keep_weights="best")
    with pytest.raises(
        UserError, match=r"validation\.fraction.*of 9 training images none.*got 0\.1.*keep_weights: last"
    ):
        describe_split([], 9, config, seed=0)
    assert describe_split([3], 10, config, seed=0)["images"] == 1
    assert describe_split([], 9, config.model_copy(update={"keep_weights": "last"}), seed=0)["images"] == 0


def test_radii_of_other_norms_are_checked():
    with pytest.raises(ValidationError, match=r"validation.extra_norms.Linf.*got 4.0.*4/255"):
        PretrainConfig.model_validate({"data": "digits", "validation": {"extra_norms": {"Linf": 4}}})


THEIRS = ((0.5, 0.25, 0.125), (0.25, 0.5, 0.125))
OTHER = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(params=["folder", "published"])
def normalised(parent, request):
    """Where weights with a normaliser inside are, and the model that they belong to."""
    import torch

    from components.models import ModelCard, build_model, network, save_model

    about = {"stem": "conv", "num_classes": 10, "resolution": 32, "normalize": THEIRS}
    torch.manual_seed(5)
    model = build_model("convnext_micro", **about, **NETWORK["kwargs"]).eval()
    if request.param == "folder":
        save_model(parent / "mine", model, ModelCard("convnext_micro", kwargs=NETWORK["kwargs"], **about))
        return parent / "mine", model
    state = {f"base_model.model.{name}": tensor for name, tensor in network(model).state_dict().items()}
    for name, values in zip(("mean", "std"), THEIRS):
        state[f"base_model.normalize.{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    torch.save(state, parent / "robust.pt")
    return parent / "robust.pt", model


@pytest.mark.parametrize("normalize", [None, THEIRS], ids=["left out", "the same"])
def test_the_normaliser_inside_a_file_is_taken(parent, normalised, normalize):
    import torch

    path, model = normalised
    network = {**NETWORK, "normalize": normalize}
    first = _first(parent, PretrainConfig, init=f"file:{path}", classes=10, epochs=0, model=network)
    assert first.card.normalize == THEIRS
    assert first.fresh == ()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first.model.eval()(images), model(images))


def test_another_normaliser_than_the_files_is_refused(parent, normalised):
    path, _ = normalised
    network = {**NETWORK, "normalize": OTHER}
    with pytest.raises(UserError) as caught:
        _first(parent, PretrainConfig, init=f"file:{path}", classes=10, epochs=0, model=network)
    for part in ("model.normalize", str(path), "[0.5, 0.25, 0.125]", "0.485", "leave model.normalize out"):
        assert part in str(caught.value)


def test_a_normaliser_for_a_model_folder_of_raw_pixels_is_refused(parent):
    network = {**NETWORK, "normalize": OTHER}
    with pytest.raises(UserError, match="is for raw pixels"):
        _first(parent, PretrainConfig, init=f"file:{parent / 'model'}", classes=10, epochs=0, model=network)


def test_a_new_stem_after_a_stage_or_a_file_may_take_another_normaliser(parent):
    import torch

    from components.models import build_model, network
    from components.train.config import ConvStemConfig

    wanted = {**NETWORK, "stem": "patch", "normalize": OTHER}
    assert _first(parent, ConvStemConfig, init="pretrain", classes=10, model=wanted).card.normalize == OTHER
    patch = build_model("convnext_micro", stem="patch", num_classes=10, resolution=32, **NETWORK["kwargs"])
    state = {f"base_model.model.{name}": tensor for name, tensor in network(patch).state_dict().items()}
    state |= {f"base_model.normalize.{name}": torch.tensor(values) for name, values in zip(("mean", "std"), THEIRS)}
    torch.save(state, parent / "clean.pt")
    first = _first(parent, ConvStemConfig, init=f"file:{parent / 'clean.pt'}", classes=10, model=wanted)
    assert (first.card.stem, first.card.normalize) == ("conv", OTHER)
    assert all("stem" in name for name in first.fresh)


def test_the_options_of_a_model_folder_are_taken_when_the_recipe_names_none(parent):
    network = {key: value for key, value in NETWORK.items() if key != "kwargs"}
    first = _first(parent, PretrainConfig, init=f"file:{parent / 'model'}", classes=10, epochs=0, model=network)
    assert first.card.kwargs == NETWORK["kwargs"]
    assert first.fresh == ()
