"""FFCV's decoder with our crop and flip, compiled by numba; imported only if FFCV is installed.

FFCV's own random crop and flip cannot be seeded, and its decoder ignores the errors that libjpeg-turbo reports.

The functions at the top repeat the formulas of `randomness` and `crop` for numba. They are compiled without fastmath,
so that every operation is rounded as IEEE 754 says and the boxes equal NumPy's in every bit; a test compares the two.
All 64-bit constants have explicit types: numba would turn a mixture of signed and unsigned integers into floats.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.traversal_order.base import TraversalOrder

from components.data.beton_writer import MODE_JPG
from components.data.crop import RATIO_STEPS, TRIES, RandomResizedCrop, ratio_table
from components.data.native_engine import Geometry
from components.data.randomness import EPOCH_SHIFT

INDEX_MASK = np.uint64((1 << EPOCH_SHIFT) - 1)
"""Takes the index of a sample out of its key."""

_UNIT = 1.0 / 9007199254740992.0
_TRIES = np.int64(TRIES)
_STEPS = np.uint64(RATIO_STEPS)


@nb.njit(nogil=True)
def mix(z):
    """splitmix64; see `randomness.mix`."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(nogil=True)
def draw(seed, key, number):
    """Random bits; see `randomness.draws`."""
    return mix(mix(mix(seed) ^ key) + np.uint64(number))


@nb.njit(nogil=True)
def unit(bits):
    """float64 in [0, 1); see `randomness.unit`."""
    return np.float64(bits >> np.uint64(11)) * _UNIT


@nb.njit(nogil=True)
def below(bits, limit):
    """int64 in [0, limit); see `randomness.below`."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@nb.njit(nogil=True)
def random_box(seed, key, height, width, scale, ratio, table):
    """(top, left, height, width); see `crop.random_boxes`. `scale` and `ratio` are float64 arrays of two."""
    for attempt in range(_TRIES):
        first = 4 * attempt + 1
        area = np.float64(height * width) * (scale[0] + (scale[1] - scale[0]) * unit(draw(seed, key, first)))
        aspect = table[below(draw(seed, key, first + 1), _STEPS)]
        w = np.int64(np.floor(np.sqrt(area * aspect) + 0.5))
        h = np.int64(np.floor(np.sqrt(area / aspect) + 0.5))
        if 0 < w <= width and 0 < h <= height:
            top = below(draw(seed, key, first + 2), height - h + 1)
            left = below(draw(seed, key, first + 3), width - w + 1)
            return top, left, h, w
    return centered_box(height, width, ratio)


@nb.njit(nogil=True)
def centered_box(height, width, ratio):
    """See `crop.centered_box`."""
    h, w = height, width
    if width < ratio[0] * height:
        h = min(height, np.int64(np.floor(width / ratio[0] + 0.5)))
    elif width > ratio[1] * height:
        w = min(width, np.int64(np.floor(height * ratio[1] + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w


@nb.njit(nogil=True)
def is_flipped(seed, key, probability):
    """Whether the image is flipped; see `crop.draw_flips`."""
    return unit(draw(seed, key, 0)) < probability


@nb.njit(nogil=True)
def flip(image):
    """Flips an (H, W, 3) image horizontally, in place."""
    height, width = image.shape[0], image.shape[1]
    for y in range(height):
        for x in range(width // 2):
            for c in range(3):
                held = image[y, x, c]
                image[y, x, c] = image[y, width - 1 - x, c]
                image[y, width - 1 - x, c] = held


class PlaceholderOrder(TraversalOrder):
    """Fills FFCV's `order` argument; the order of every epoch comes from `BatchSampler` instead.

    FFCV expects an instance that it calls with the loader, and refuses a class.
    """

    def __init__(self) -> None:
        self.indices: Any = None

    def __call__(self, loader: Any) -> PlaceholderOrder:
        self.indices = loader.indices
        return self

    def sample_order(self, epoch: int) -> Any:
        """Returns all samples in file order."""
        return self.indices


class SeededCropDecoder(RandomResizedCropRGBImageDecoder):
    """Decodes, crops, resizes and flips the sample of each key; crop and flip are those of `crop` for (seed, key).

    Its third buffer (int32, one value per sample of the batch) is 1 for an image that libjpeg-turbo refuses, else 0.
    """

    def __init__(self, geometry: Geometry) -> None:
        side, crop = geometry.resolution, geometry.crop
        assert isinstance(crop, RandomResizedCrop)
        super().__init__((side, side), scale=crop.scale, ratio=crop.ratio)
        self._geometry, self._crop = geometry, crop

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        """Declares one decoding buffer per sample, as large as the largest image (FFCV: largest height x width)."""
        inherited: Any = super().declare_state_and_memory(previous_state)
        state, (output, _) = inherited
        largest = (self.metadata["height"].astype(np.int64) * self.metadata["width"]).max() * 3
        buffer, failed = AllocationQuery((int(largest),), np.dtype("u1")), AllocationQuery((1,), np.dtype("i4"))
        return state, (output, buffer, failed)

    def generate_code(self) -> Any:
        """Returns the function that FFCV compiles; all names from outside it become constants of the compiled code."""
        memory_read: Any = self.memory_read
        parallel_range = Compiler.get_iterator()
        compiler: Any = Compiler
        decode_jpeg, resize = compiler.compile(imdecode), compiler.compile(resize_crop)
        seed, probability = np.uint64(self._geometry.seed), np.float64(self._geometry.hflip)
        scale, ratio = (np.array(pair, np.float64) for pair in (self._crop.scale, self._crop.ratio))
        table, mode_jpg = ratio_table(self._crop.ratio), np.uint8(MODE_JPG)

        def decode(batch_indices, my_storage, metadata, storage_state):
            destination, buffers, failed = my_storage
            for row in parallel_range(len(batch_indices)):
                key = np.uint64(batch_indices[row])
                field = metadata[key & INDEX_MASK]
                failed[row, 0] = 0
                data = memory_read(field["data_ptr"], storage_state)
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                if field["mode"] == mode_jpg:
                    whole = buffers[row]
                    status = decode_jpeg(data, whole, height, width, height, width, 0, 0, 1, 1, False, False)
                    if status != 0:
                        failed[row, 0] = 1
                    pixels = whole.reshape(-1)[: 3 * height * width].reshape(height, width, 3)
                else:
                    pixels = data.reshape(height, width, 3)
                top, left, h, w = random_box(seed, key, np.int64(height), np.int64(width), scale, ratio, table)
                resize(pixels, top, top + h, left, left + w, destination[row])
                if is_flipped(seed, key, probability):
                    flip(destination[row])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # pyright: ignore[reportFunctionMemberAccess]
        return decode
