"""Random numbers without state: number k of (seed, epoch, sample) is a hash, the same on every machine and thread.

The mixing function is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). All of
it is 64-bit integer arithmetic that wraps around, vectorised over NumPy arrays. `ffcv_decoder` holds the same formulas
for numba, and a test compares the two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EPOCH_SHIFT = 40
"""A sample's key holds its index in the low 40 bits and the epoch above them."""

MAX_EPOCH = (1 << (64 - EPOCH_SHIFT)) - 1

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_UNIT = 1.0 / 9007199254740992.0  # 2^-53: the upper 53 bits become a float64 in [0, 1)


def mix(values: npt.ArrayLike) -> U64:
    """Returns splitmix64 of each value, uint64 in and out."""
    z = np.asarray(values, np.uint64)
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return z ^ (z >> np.uint64(31))


def sample_keys(indices: npt.ArrayLike, epoch: int) -> U64:
    """Returns the keys of samples (indices below 2^40) in an epoch (below 2^24)."""
    assert 0 <= epoch <= MAX_EPOCH, epoch
    return np.asarray(indices, np.uint64) | np.uint64(epoch << EPOCH_SHIFT)


def draws(seed: int, keys: npt.ArrayLike, numbers: npt.ArrayLike) -> U64:
    """Returns the random bits with these numbers for each key; the two arrays are broadcast against each other."""
    with np.errstate(over="ignore"):
        base = mix(mix(np.uint64(seed)) ^ np.asarray(keys, np.uint64))
        return mix(base + np.asarray(numbers, np.uint64))


def unit(bits: U64) -> npt.NDArray[np.float64]:
    """Converts random bits to float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * _UNIT


def below(bits: U64, limit: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Converts random bits to integers in [0, limit), limit below 2^32."""
    return (((bits >> np.uint64(32)) * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int64)
