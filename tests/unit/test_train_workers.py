"""A range of workers: how it is written, and which number a cluster gets."""

import json

import pytest
from pydantic import ValidationError

from components.errors import UserError
from components.fingerprint import fingerprinted
from components.train.config import AdversarialConfig
from components.train.workers import workers_for
from tests.small_training import NETWORK, encoded, job, train


def _config(**change):
    return AdversarialConfig.model_validate({"data": "digits", "init": "convstem", "batch_size": 64, **change})


def _workers_for(change, available):
    config = _config(**change)
    size, pairs = config.batch_size, config.mixes
    return workers_for(config.worker_range, batch_size=size, pairs=pairs, available=available, unit="cores")


@pytest.mark.parametrize("written", ["1-4", " 1 - 4 ", [1, 4], (1, 4)])
def test_a_range_is_a_text_or_two_numbers(written):
    config = _config(num_workers=written)
    assert config.worker_range == (1, 4)
    assert config.num_workers == 4, "what a cluster is asked for stays one number"
    assert AdversarialConfig.model_validate_json(config.model_dump_json()) == config


def test_one_number_is_exactly_that_number():
    assert _config(num_workers=2).worker_range == (2, 2)
    assert _config().worker_range == (0, 0)


@pytest.mark.parametrize(
    ("change", "available", "taken"),
    [
        ({"num_workers": "1-4"}, 8, 4),
        ({"num_workers": "1-4"}, 3.0, 2),
        ({"num_workers": "1-4"}, 1, 1),
        ({"num_workers": "2-8", "batch_size": 60}, 8, 6),
        ({"num_workers": "1-8", "batch_size": 60, "mixup": 0.8}, 5, 5),
        ({"num_workers": "1-4", "batch_size": 60, "mixup": 0.8}, 4, 3),
        ({"num_workers": 2}, 2, 2),
    ],
)
def test_the_largest_number_that_fits_and_divides(change, available, taken):
    assert _workers_for(change, available) == taken


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"num_workers": "2-4"}, ["num_workers", "1 cores", "2-4"]),
        ({"num_workers": 2}, ["num_workers", "1 cores", "got 2"]),
        ({"num_workers": "1-4", "batch_size": 63}, []),
        ({"num_workers": "2-4", "batch_size": 66}, ["num_workers", "1 cores"]),
    ],
)
def test_a_cluster_that_is_too_small(change, parts):
    if not parts:
        assert _workers_for(change, 1) == 1
        return
    with pytest.raises(UserError) as caught:
        _workers_for(change, 1)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"num_workers": "4-1"}, ["num_workers", "4-1", "1-4"]),
        ({"num_workers": "0-4"}, ["num_workers", "0-4"]),
        ({"num_workers": [1, 2, 3]}, ["num_workers", "[1, 2, 3]"]),
        ({"num_workers": [1, "4"]}, ["num_workers", "smallest and its largest"]),
        ({"num_workers": "many"}, ["num_workers", "many"]),
        ({"num_workers": "3-3"}, ["batch_size", "64", "multiple of 3"]),
        ({"num_workers": "5-7"}, ["batch_size", "64", "5 to 7"]),
        ({"num_workers": "5-7", "batch_size": 49, "mixup": 0.8}, ["batch_size", "49", "in pairs"]),
        ({"num_workers": 2, "min_workers": 3}, ["min_workers", "3", "at most num_workers (2)"]),
        ({"min_workers": 1}, ["min_workers", "1"]),
    ],
)
def test_refusals_of_a_range(change, parts):
    with pytest.raises(ValidationError) as caught:
        _config(**change)
    for part in parts:
        assert part in str(caught.value)


def test_neither_workers_nor_micro_batches_nor_ports_are_in_the_fingerprint():
    other = _config(
        num_workers="1-4",
        micro_batch_size=8,
        metrics_port=0,
        log_interval_s=60,
        peak_tflops=1,
        pretrained_data="imagenet-1k",
    )
    assert fingerprinted(other) == fingerprinted(_config())


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "pos_drop_rate", "proj_drop_rate", "patch_drop_rate"])
@pytest.mark.parametrize("change", [{"micro_batch_size": 8}, {"num_workers": 2}, {"num_workers": "1-4"}])
def test_dropout_is_refused_where_workers_or_micro_batches_would_change_what_it_draws(rate, change):
    model = {"name": "vit_small", "kwargs": {rate: 0.1}}
    with pytest.raises(ValidationError, match=rf"model\.kwargs\.{rate}.*dropout.*got 0\.1.*drop_path"):
        _config(model=model, **change)
    assert _config(model=model, num_workers=1).model is not None
    assert _config(model={**model, "kwargs": {rate: 0.0}}, **change).model is not None
    assert _config(drop_path=0.1, **change).drop_path == 0.1


def test_dropout_of_the_first_weights_is_refused_too(tmp_path):
    from types import SimpleNamespace

    from components.models import ModelCard, build_model, save_model
    from components.train.initial_model import initial_model

    kwargs = {**NETWORK["kwargs"], "drop_rate": 0.2}
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, **kwargs)
    save_model(tmp_path / "model", model, ModelCard("convnext_micro", "conv", 10, 32, kwargs=kwargs))
    made = SimpleNamespace(inputs={"init": SimpleNamespace(path=lambda name: tmp_path / name)})
    data = SimpleNamespace(num_classes=10, classes=())
    with pytest.raises(UserError, match=r"model\.kwargs\.drop_rate.*got 0\.2"):
        initial_model(made, _config(num_workers=2, resolution=32), data, 0)
    assert initial_model(made, _config(resolution=32), data, 0).card.kwargs["drop_rate"] == 0.2


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_micro_batches_train_like_whole_batches(tmp_path, drop_path):
    data, attack = encoded(tmp_path / "data"), {"norm": "Linf", "eps": 0.1, "steps": 2}
    # A layer scale of 1 lets every block count, and with it what stochastic depth leaves out.
    network = {**NETWORK, "kwargs": {**NETWORK["kwargs"], "ls_init_value": 1.0}}
    same = {"attack": attack, "mixup": 0.8, "drop_path": drop_path, "model": network}
    whole, pieces = (job(data, tmp_path / str(n), micro_batch_size=n, **same) for n in (0, 5))
    train(whole)
    train(pieces)
    one, two = (json.loads((made.run.artifacts / "history.json").read_text()) for made in (whole, pieces))
    for first, second in zip(one, two, strict=True):
        for figure in ("loss", "grad_norm", "attack_gain"):
            assert second[figure] == pytest.approx(first[figure], rel=1e-4), figure


@pytest.mark.parametrize(("grows_to", "at", "taken"), [(4, 60, 4), (2, 60, 2), (4, 600, 1)])
def test_a_cluster_that_can_grow_is_asked_to_and_given_two_minutes(monkeypatch, grows_to, at, taken):
    import ray
    import ray.autoscaler.sdk

    from components.train import ray_trainer
    from components.train.signals import StopRequests

    now, asked = [0.0], []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": grows_to if now[0] >= at else 1})
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda bundles: asked.append(len(bundles)))
    monkeypatch.setattr(ray_trainer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray_trainer.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    config = _config(num_workers="1-4", device="cpu")
    assert ray_trainer._workers_now(config, StopRequests(), patient=True) == (False, taken)
    assert set(asked) == {4}
    assert now[0] == (60 if taken == 4 else 120)
