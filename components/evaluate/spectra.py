"""Power spectra of a model: of the filters of its stem, and of the gradient of its loss by the image.

Why: a stem that averages away high frequencies leaves an attack less to work with, and a model that relies on coarse
structure has a gradient with most power at low frequencies. Both are properties of the trained model, beside its
accuracies. Only this package opens models, so only it measures spectra; the report draws them.

Radial spectra show how much of a signal's power is at which spatial frequency, whatever its direction. The discrete
Fourier transform is F[u, v] = sum over x, y of f[x, y] exp(-2 pi i (u x + v y) / P) on a P x P grid, and u, v run from
-P/2 to P/2. Coefficient (u, v) belongs to ring k = round(sqrt(u^2 + v^2)), halves rounded up, whose frequency is k / P
cycles per sample. The rings go on into the corners of the square, past 0.5 cycles per sample, so that every coefficient
is in exactly one ring and no power is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.evaluate.config import EvaluateConfig
from components.evaluate.images import ImageSet
from components.evaluate.unit_worker import as_images, one_thread
from components.models.convstem import find_stem
from components.models.resolution import set_resolution
from components.models.weights import load_model

FILTER_GRID = 64
"""Side of the grid on which filters are sampled, in samples of the filter's own input."""

FORMULA = (
    "power: mean over the ring of |F|^2 / P^2, F the P x P discrete Fourier transform; frequency: cycles per image "
    "pixel; "
    "count: coefficients in the ring. stem: filters padded with zeros to P = 64, mean over all input and output "
    "channels, frequency divided by the stride in front. gradients: of the cross-entropy in nats by pixels in [0, 1], "
    "P the image's side, mean over images and colours"
)


@dataclass(frozen=True)
class Radial:
    """A radial power spectrum of K rings.

    Attributes:
        frequency: (K,) cycles per sample, from 0 to about 0.71.
        power: (K,) float64, mean of |F|^2 / P^2 over the coefficients of the ring, in units of the signal squared. By
            Parseval's theorem its mean over all coefficients is the mean square of the signal.
        count: (K,) coefficients in each ring; their sum is P^2.
    """

    frequency: Tensor
    power: Tensor
    count: Tensor

    def plain(self) -> dict[str, list[float]]:
        """For JSON."""
        power = [float(f"{value:.9g}") for value in self.power.tolist()]
        return {
            "frequency": [round(f, 9) for f in self.frequency.tolist()],
            "power": power,
            "count": self.count.tolist(),
        }


def rings(side: int) -> Tensor:
    """(side, side) int64: the ring of each coefficient, in the order of `torch.fft.fft2`."""
    steps = torch.fft.fftfreq(side, d=1 / side, dtype=torch.float64)
    return torch.floor((steps[:, None] ** 2 + steps[None, :] ** 2).sqrt() + 0.5).to(torch.int64)


def radial_power(signals: Tensor, side: int | None = None) -> Radial:
    """The mean radial power spectrum of a set of signals.

    Args:
        signals: (..., H, W), real; the spectrum is averaged over all leading dimensions.
        side: P, the grid's side; smaller signals are padded with zeros, so that filters of different sizes are sampled
            at the same frequencies. None: the longer side of the signals.
    """
    height, width = signals.shape[-2:]
    side = side or max(height, width)
    assert max(height, width) <= side, f"signals of {height} x {width} do not fit on a grid of side {side}"
    spectrum = torch.fft.fft2(signals.double(), s=(side, side)).abs().square() / side**2
    mean = spectrum.reshape(-1, side * side).mean(dim=0)
    ring = rings(side).to(mean.device).flatten()
    count = torch.bincount(ring)
    power = torch.zeros(len(count), dtype=torch.float64, device=mean.device).index_add_(0, ring, mean) / count
    return Radial((torch.arange(len(count)) / side).double(), power.cpu(), count.cpu())


def measure(model_folder: Path, images: ImageSet, config: EvaluateConfig) -> dict[str, Any]:
    """Spectra of a saved model, JSON-able.

    Args:
        model_folder: as `save_model` wrote it.
        images: those that were evaluated; gradients are taken at every resolution they were decoded for.

    Returns:
        `formula`; `stem`, one a convolution, from the image on; `gradients`, one a resolution. Each has `frequency`,
        `power` and `count` (see `radial_power`), of equal length.
    """
    model, _ = load_model(model_folder)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    model = model.float().to(device)
    with one_thread(device):
        stem = stem_spectra(model)
        gradients = [_gradients(model, images, side, config.batch_size, device) for side in images.pixels]
    return {"format": 1, "formula": FORMULA, "stem": stem, "gradients": gradients}


def stem_spectra(model: nn.Module) -> list[dict[str, Any]]:
    """The spectrum of each spatial convolution of the model's stem, in order; 1 x 1 convolutions have none.

    A convolution behind others sees samples that lie `input_stride` image pixels apart, so its frequencies are divided
    by that, to be cycles per image pixel in all of them.
    """
    found, stride = [], 1
    for name, layer in find_stem(model).named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        height, width = layer.kernel_size
        if max(height, width) > 1:
            side = max(FILTER_GRID, height, width)
            spectrum = radial_power(layer.weight.detach(), side)
            scaled = Radial(spectrum.frequency / stride, spectrum.power, spectrum.count)
            sizes = {"kernel": [height, width], "stride": layer.stride[0], "input_stride": stride}
            channels = {"in_channels": layer.in_channels, "out_channels": layer.out_channels}
            found.append({"name": name or "stem", **sizes, **channels, **scaled.plain()})
        stride *= int(layer.stride[0])
    return found


def gradient_spectrum(model: nn.Module, images: Tensor, labels: Tensor) -> Radial:
    """Mean radial power spectrum of the gradient of each image's own loss by its pixels.

    Args:
        model: in eval mode; its parameters are left without gradients.
        images: (B, 3, R, R) float32 in [0, 1], on the model's device.
        labels: (B,) int64.
    """
    pixels = images.detach().clone().requires_grad_(True)
    # The sum, because each image's loss depends on its own pixels alone: no factor 1 / B enters the gradient.
    loss = nn.functional.cross_entropy(model(pixels).float(), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return radial_power(gradient)


def _gradients(model: nn.Module, images: ImageSet, side: int, batch_size: int, device: torch.device) -> dict[str, Any]:
    set_resolution(model, side)
    model.eval()
    found: list[Radial] = []
    for start in range(0, images.n, batch_size):
        block = slice(start, start + batch_size)
        pixels = as_images(images.pixels[side][block]).to(device)
        one = gradient_spectrum(model, pixels, torch.from_numpy(images.labels[block]).to(device))
        found.append(Radial(one.frequency, one.power * len(pixels) / images.n, one.count))
    mean = Radial(found[0].frequency, torch.stack([one.power for one in found]).sum(dim=0), found[0].count)
    return {"resolution": side, "n": images.n, **mean.plain()}
