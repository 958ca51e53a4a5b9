"""The averaged weights."""

import torch
from torch import nn

from components.train.optimizer import Ema


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))


def test_constant_buffers_do_not_drift():
    """The published ViT-S carries a normaliser whose mean the average has moved by 5e-5."""
    model = Net()
    ema = Ema(model, 0.9999)
    for _ in range(10_000):
        ema.update()
    assert torch.equal(ema.model.mean, torch.tensor([0.485, 0.456, 0.406]))
    assert torch.equal(ema.model.line.weight, model.line.weight)


def test_follows_the_formula():
    torch.manual_seed(0)
    model = Net()
    ema, expected = Ema(model, 0.9), model.line.weight.detach().double()
    for _ in range(50):
        with torch.no_grad():
            model.line.weight.add_(torch.randn_like(model.line.weight))
        ema.update()
        expected = 0.9 * expected + 0.1 * model.line.weight.detach().double()
    torch.testing.assert_close(ema.model.line.weight.double(), expected, atol=1e-6, rtol=0)


def test_starts_at_the_weights_and_copies_buffers():
    model = Net()
    ema = Ema(model, 0.99)
    assert torch.equal(ema.model.line.weight, model.line.weight)
    model.norm.running_mean.fill_(3.0)
    model.norm.num_batches_tracked.fill_(7)
    ema.update()
    assert torch.equal(ema.model.norm.running_mean, torch.full((3,), 3.0))
    assert int(ema.model.norm.num_batches_tracked) == 7
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
