"""Spectra of a model: of the filters its stem holds, and of the gradient of its loss by the image.

Why: a stem that averages away high frequencies leaves an attack less to work with, and a model that relies on coarse
structure has a gradient whose power lies at low frequencies. Both are properties of the model as it is, beside its
accuracies. Only this room opens models, so only it measures spectra; the report draws them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.evaluate.bench import as_images, one_thread
from components.evaluate.config import EvaluateConfig
from components.evaluate.images import ImageSet
from components.evaluate.radial import Radial, radial_power
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
