"""The built-in set `digits`: scikit-learn's 1,797 scanned digits, enlarged to 32 px RGB, with a fixed split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.data.split import held_out

SIDE = 32
VAL_FRACTION = 0.2
"""Gives 1,438 training and 359 validation images, the same share of every digit."""

_SEED = 1797


def drawn() -> Iterator[tuple[str, str, npt.NDArray[np.uint8]]]:
    """(split, class name, image) of every digit in scikit-learn's order; images are uint8 (32, 32, 3)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    val = held_out(labels.tolist(), VAL_FRACTION, _SEED)
    for index, (flat, label) in enumerate(zip(images, labels, strict=True)):
        yield ("val" if index in val else "train"), str(label), _enlarged(flat.reshape(8, 8))


def _enlarged(ink: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """8x8 values of 0 to 16 as a 32x32 RGB image of 0 to 255."""
    grey = np.rint(ink * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))
