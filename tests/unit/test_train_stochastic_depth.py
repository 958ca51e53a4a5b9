"""Stochastic depth that belongs to the image: the same for one worker, for two, and for a batch in pieces."""

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from components.models import build_model
from components.train.stochastic_depth import RowDropPath, draw_drop_path, replace_drop_path
from components.train.train_step import AttackSettings, Precision, train_step
from tests.small_training import NETWORK

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PLACE = {"seed": 1, "epoch": 2, "batch": 3, "device": CPU}


def _network(drop_path=0.5):
    """Its blocks count: with timm's first layer scale of 1e-6 a block that is left out would hardly be missed."""
    torch.manual_seed(0)
    kwargs = {**NETWORK["kwargs"], "ls_init_value": 1.0}
    model = build_model("convnext_micro", stem="conv", num_classes=4, resolution=32, drop_path=drop_path, **kwargs)
    return replace_drop_path(model).train()


def _layers(model):
    return [module for module in model.modules() if isinstance(module, RowDropPath)]


def _scales(model, rows, **place):
    draw_drop_path(model, rows, **{**PLACE, **place})(slice(0, rows.stop - rows.start))
    return torch.stack([layer.scale for layer in _layers(model)], dim=1)


@pytest.mark.parametrize("name", ["convnext_micro", "vit_small", "convnext_iso"])
def test_every_drop_path_of_timm_is_replaced(name):
    kwargs = NETWORK["kwargs"] if name == "convnext_micro" else {"depth": 3}
    side = 32 if name == "convnext_micro" else 64
    model = build_model(name, num_classes=4, resolution=side, drop_path=0.3, **kwargs)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates
    replace_drop_path(model)
    assert not any(isinstance(module, DropPath) for module in model.modules())
    assert [layer.drop_prob for layer in _layers(model)] == rates
    draw_drop_path(model, slice(0, 2), **PLACE)(slice(0, 2))
    assert model.train()(torch.rand(2, 3, side, side)).shape == (2, 4)


def test_a_draw_belongs_to_its_place_row_and_layer():
    model = _network()
    whole = _scales(model, slice(0, 64))
    assert torch.equal(_scales(model, slice(0, 64)), whole)
    assert torch.equal(_scales(model, slice(24, 40)), whole[24:40])
    assert len({tuple(row.tolist()) for row in whole}) > 1
    assert len({tuple(column.tolist()) for column in whole.T}) == len(_layers(model)) > 1
    for change in ({"seed": 2}, {"epoch": 3}, {"batch": 4}):
        assert not torch.equal(_scales(model, slice(0, 64), **change), whole)


def test_layers_are_left_out_as_often_as_they_are_told_and_scaled_for_it():
    model = _network(0.5)
    scales = _scales(model, slice(0, 4000))
    for layer, column in zip(_layers(model), scales.T, strict=True):
        keep = 1 - layer.drop_prob
        torch.testing.assert_close(column.unique(), torch.tensor([0.0, 1 / keep]))
        assert float((column > 0).float().mean()) == pytest.approx(keep, abs=0.03)


def test_what_a_layer_does_to_its_images():
    layer = RowDropPath(0.5)
    x = torch.rand(3, 2, 4, 4)
    layer.scale = torch.tensor([0.0, 2.0, 0.0])
    assert torch.equal(layer(x), torch.stack([0 * x[0], 2 * x[1], 0 * x[2]]))
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.eval()(x) is x


def test_a_layer_that_was_told_nothing_says_so():
    with pytest.raises(AssertionError, match="draw_drop_path"):
        RowDropPath(0.5)(torch.rand(1, 1))


def test_a_network_without_it_draws_nothing():
    assert draw_drop_path(_network(0.0), slice(0, 4), **PLACE) is None


def test_nothing_is_left_out_in_eval_mode():
    images = torch.rand(4, 3, 32, 32)
    model, plain = _network(0.5).eval(), _network(0.0).eval()
    assert torch.equal(model(images), plain(images))


def _step(model, images, targets, noise, rows, attack, *, micro_batch_size=0, reduce=None):
    """Gradients and figures of the rows of a batch of 8, as a worker that has them makes them."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(
        model,
        optimizer,
        images[rows],
        targets[rows],
        attack=attack,
        noise=noise[rows],
        precision=Precision("cpu"),
        global_batch=8,
        micro_batch_size=micro_batch_size,
        before_micro_batch=draw_drop_path(model, rows, **PLACE),
    )
    return [p.grad for p in model.parameters()], result.sums


@pytest.mark.parametrize(
    "attack",
    [
        None,
        AttackSettings("Linf", 0.05, 2),
        AttackSettings("Linf", 0.05, 2, loss="trades"),
        AttackSettings("Linf", 0.05, 1, name="fgsm"),
    ],
    ids=["clean", "apgd", "trades", "fgsm"],
)
def test_one_worker_is_two_workers_is_a_batch_in_micro_batches(attack):
    """In float64: the attacks take signs of gradients, and in float32 a batch of another size may round a gradient near
    0 to the other sign (on processors with AVX-512 it does)."""
    model, generator = _network().double(), torch.Generator().manual_seed(1)
    images, targets = torch.rand(8, 3, 32, 32, generator=generator).double(), torch.arange(8) % 4
    noise = torch.randn(8, 3, 32, 32, generator=generator).clamp(-1, 1).double()
    whole, sums = _step(model, images, targets, noise, slice(0, 8), attack)
    halves = [_step(model, images, targets, noise, rows, attack) for rows in (slice(0, 4), slice(4, 8))]
    small, small_sums = _step(model, images, targets, noise, slice(0, 8), attack, micro_batch_size=3)
    together = [first + second for first, second in zip(halves[0][0], halves[1][0], strict=True)]
    torch.testing.assert_close(halves[0][1] + halves[1][1], sums, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(small_sums, sums, rtol=1e-9, atol=1e-9)
    for one, two, many in zip(whole, together, small, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(many, one, rtol=1e-7, atol=1e-10)


def test_the_comparison_would_see_another_draw():
    model = _network()
    images, targets = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    one, other = (_step(m, images, targets, images, slice(0, 8), None)[0] for m in (model, copy.deepcopy(model).eval()))
    assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) > 1e-3


def test_a_compiled_network_sees_every_new_draw():
    model, images = _network(), torch.rand(8, 3, 32, 32)
    compiled, found = torch.compile(model, backend="eager"), []
    for batch in range(4):
        draw_drop_path(model, slice(0, 8), **{**PLACE, "batch": batch})(slice(0, 8))
        found.append(compiled(images).detach())
        torch.testing.assert_close(found[-1], model(images).detach())
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(compiled(images).detach(), found[-1])
    nn.Module.eval(model)
    torch.testing.assert_close(compiled(images), model(images))
