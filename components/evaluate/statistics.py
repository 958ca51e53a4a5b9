"""The worst case over several threats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def survives_all(verdicts: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Worst case image by image: robust only where robust under every threat. Each (n,), all of one length."""
    assert len({v.shape for v in verdicts}) == 1, "verdicts on the same images"
    return np.logical_and.reduce(verdicts)
