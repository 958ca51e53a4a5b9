"""FFCV's side of the loader: a decoder with our crop and flip, and an order that carries the epoch.

Only imported where FFCV is installed. FFCV's own random crop and flip cannot be seeded; its decoder ignores what
libjpeg-turbo reports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.traversal_order.base import TraversalOrder

from components.data.beton_format import MODE_JPG
from components.data.crop import RandomCrop, ratio_table
from components.data.ffcv_kernels import MASK, mirror, mirrored, random_box
from components.data.native_engine import Geometry


class GivenOrder(TraversalOrder):
    """Lets the loader start; every epoch is handed its own order afterwards.

    FFCV wants an instance that is called with the loader (a subclass is refused).
    """

    def __init__(self) -> None:
        self.indices: Any = None

    def __call__(self, loader: Any) -> GivenOrder:
        self.indices = loader.indices
        return self

    def sample_order(self, epoch: int) -> Any:
        """All samples as they lie in the file."""
        return self.indices


class PureCropDecoder(RandomResizedCropRGBImageDecoder):
    """Decodes, crops, resizes and flips sample `key & MASK` as `crop` says for (seed, key).

    Its third buffer (int32, one a sample of the batch) is 1 for an image that libjpeg-turbo refuses, else 0.
    """

    def __init__(self, geometry: Geometry) -> None:
        side, crop = geometry.resolution, geometry.crop
        assert isinstance(crop, RandomCrop)
        super().__init__((side, side), scale=crop.scale, ratio=crop.ratio)
        self._geometry, self._crop = geometry, crop

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        """One decoding buffer a sample of the size of the largest image (FFCV's own takes largest height x width)."""
        inherited: Any = super().declare_state_and_memory(previous_state)
        state, (output, _) = inherited
        largest = (self.metadata["height"].astype(np.int64) * self.metadata["width"]).max() * 3
        buffer, failed = AllocationQuery((int(largest),), np.dtype("u1")), AllocationQuery((1,), np.dtype("i4"))
        return state, (output, buffer, failed)

    def generate_code(self) -> Any:
        """The function that FFCV compiles; everything it names is a constant of the compiled code."""
        memory_read: Any = self.memory_read
        parallel_range = Compiler.get_iterator()
        compiler: Any = Compiler
        decode_jpeg, resize = compiler.compile(imdecode), compiler.compile(resize_crop)
        seed, probability = np.uint64(self._geometry.seed), np.float64(self._geometry.flip)
        scale, ratio = (np.array(pair, np.float64) for pair in (self._crop.scale, self._crop.ratio))
        table, mode_jpg = ratio_table(self._crop.ratio), np.uint8(MODE_JPG)

        def decode(batch_indices, my_storage, metadata, storage_state):
            destination, buffers, failed = my_storage
            for row in parallel_range(len(batch_indices)):
                key = np.uint64(batch_indices[row])
                field = metadata[key & MASK]
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
                if mirrored(seed, key, probability):
                    mirror(destination[row])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # pyright: ignore[reportFunctionMemberAccess]
        return decode
