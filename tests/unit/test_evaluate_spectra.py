"""Spectra: known signals land in their ring, a plain sum gives the same, and nothing else of an evaluation changes."""

import cmath
import math

import pytest
import torch
from torch import nn

from components.evaluate.config import EvaluateConfig
from components.evaluate.spectra import FILTER_GRID, gradient_spectrum, radial_power, rings, stem_spectra
from components.fingerprint import fingerprinted
from components.models.build import build_model


def wave(side, u, v):
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cos(2 * math.pi * (u * x + v * y).double() / side)


@pytest.mark.parametrize(("side", "u", "v"), [(8, 2, 0), (8, 0, 3), (16, 3, 4), (9, 1, 1), (16, 8, 0), (16, 7, 7)])
def test_a_pure_wave_lands_in_its_ring_and_nowhere_else(side, u, v):
    found = radial_power(wave(side, u, v))
    ring = math.floor(math.hypot(u, v) + 0.5)
    share = found.power * found.count / (found.power * found.count).sum()
    assert share[ring].item() == pytest.approx(1.0)
    assert found.frequency[ring].item() == pytest.approx(ring / side)


def test_a_constant_is_all_at_frequency_zero():
    found = radial_power(torch.full((3, 2, 8, 8), 2.0))
    assert found.power[0].item() == pytest.approx(4.0 * 64)
    assert found.power[1:].abs().max().item() < 1e-20


@pytest.mark.parametrize(("shape", "side"), [((2, 3, 6, 6), None), ((4, 3, 3), 7), ((5, 4, 4), 8), ((3, 2), 5)])
def test_equals_a_plain_discrete_fourier_sum(shape, side):
    torch.manual_seed(0)
    signals = torch.randn(shape, dtype=torch.float64)
    found = radial_power(signals, side)
    grid = side or shape[-1]
    sums, counts = {}, {}
    flat = signals.reshape(-1, *shape[-2:]).tolist()
    for u in range(-(grid // 2), (grid + 1) // 2):
        for v in range(-(grid // 2), (grid + 1) // 2):
            ring = int(math.hypot(u, v) + 0.5)
            counts[ring] = counts.get(ring, 0) + 1
            for signal in flat:
                value = sum(
                    cell * cmath.exp(-2j * math.pi * (u * x + v * y) / grid)
                    for x, line in enumerate(signal)
                    for y, cell in enumerate(line)
                )
                sums[ring] = sums.get(ring, 0.0) + abs(value) ** 2 / grid**2 / len(flat)
    assert found.count.tolist() == [counts[k] for k in range(len(counts))]
    assert found.power.tolist() == pytest.approx([sums[k] / counts[k] for k in range(len(counts))])


def test_no_power_is_lost():
    torch.manual_seed(1)
    signals = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    found = radial_power(signals)
    assert found.count.sum().item() == 144
    assert ((found.power * found.count).sum() / 144).item() == pytest.approx(signals.square().mean().item())
    assert rings(12).max().item() == len(found.power) - 1


class Wave(nn.Module):
    """Two logits, the first the product of the image's first colour with a wave: its gradient is that wave."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = nn.Parameter(pattern.float())

    def forward(self, images):
        first = (images[:, 0] * self.pattern).sum(dim=(1, 2))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_gradients_are_of_each_image_alone_and_leave_no_trace():
    model = Wave(wave(8, 0, 3) * 0.01)
    images, labels = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    found = gradient_spectrum(model, images, labels)
    # At equal logits the loss falls by half the wave, in one of three colours: power |F|^2 / P^2 / 3 on two of the
    # coefficients of ring 3, where F = 0.01 / 2 * P^2 / 2.
    expected = (0.01 / 2 * 64 / 2) ** 2 / 64 / 3 * 2 / found.count[3].item()
    assert found.power[3].item() == pytest.approx(expected, rel=1e-5)
    assert found.power[[0, 1, 2, 4, 5]].max().item() < 1e-12
    assert gradient_spectrum(model, images[:1], labels[:1]).power.tolist() == pytest.approx(found.power.tolist())
    assert model.pattern.grad is None


@pytest.mark.slow
def test_each_convolution_of_the_stem_has_a_spectrum_in_cycles_per_image_pixel():
    torch.manual_seed(0)
    (patch,) = stem_spectra(build_model("convnext_micro", stem="patch", num_classes=10))
    assert (patch["kernel"], patch["stride"], patch["input_stride"]) == ([4, 4], 4, 1)
    first, second = stem_spectra(build_model("convnext_micro", stem="conv", num_classes=10))
    assert (first["kernel"], first["input_stride"], second["input_stride"]) == ([3, 3], 1, 2)
    assert first["frequency"][FILTER_GRID // 2] == 0.5
    assert second["frequency"][FILTER_GRID // 2] == 0.25
    (vit,) = stem_spectra(build_model("vit_small", stem="patch", num_classes=10))
    assert (vit["kernel"], vit["name"]) == ([16, 16], "stem")
    assert len(stem_spectra(build_model("vit_small", stem="conv", num_classes=10))) == 4


def test_a_filter_that_is_a_wave_peaks_at_its_frequency():
    model = build_model("convnext_micro", stem="patch", num_classes=10)
    with torch.no_grad():
        model.stem[0].weight.copy_(wave(4, 1, 0).expand_as(model.stem[0].weight))
    (found,) = stem_spectra(model)
    ring_power = [p * c for p, c in zip(found["power"], found["count"], strict=True)]
    assert found["frequency"][max(range(len(ring_power)), key=ring_power.__getitem__)] == pytest.approx(0.25, abs=0.05)


def test_fingerprints_of_evaluations_without_spectra_stay_as_they_were():
    assert "spectra" not in fingerprinted(EvaluateConfig(model="a"))
    assert fingerprinted(EvaluateConfig(model="a", spectra=True))["spectra"] is True
