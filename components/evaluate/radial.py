"""Radial power spectra: how much of a signal's power lies at which spatial frequency, whatever its direction.

The discrete Fourier transform is F[u, v] = sum over x, y of f[x, y] exp(-2 pi i (u x + v y) / P) on a P x P grid, and
u, v run from -P/2 to P/2. Coefficient (u, v) belongs to ring k = round(sqrt(u^2 + v^2)), halves rounded up, whose
frequency is k / P cycles per sample. The rings go on into the corners of the square, past 0.5 cycles per sample, so
that every coefficient is in exactly one ring and no power is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
