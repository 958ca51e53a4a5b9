"""Reading one image file: every kind becomes 8-bit RGB; values without a known range are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from components.data.encode import EncodeSettings, ImageItem, Unreadable, encode_chunk, read_rgb


def saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_shades(form: str) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = read_rgb(saved(Image.fromarray(deep), form))
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., 0].reshape(-1), np.arange(256))
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused_by_name(tmp_path, kind: type) -> None:
    path = tmp_path / "deep.tif"
    path.write_bytes(saved(Image.fromarray(np.ones((16, 16), kind)), "TIFF"))
    [item] = [ImageItem(str(path), 0)]
    [found] = encode_chunk([item], EncodeSettings(16, "raw"))
    assert isinstance(found, Unreadable)
    assert found.path == str(path)
    assert "without a known range" in found.cause


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "ValueError: the file is empty"),
        (b"<html>404</html>", "UnidentifiedImageError: its format is unknown"),
        (
            saved(Image.new("L", (65_536, 2)), "PNG"),
            "ValueError: 65536x2 pixels; a side of a stored image has at most 65535",
        ),
    ],
)
def test_the_cause_says_what_is_wrong_with_an_image(tmp_path, content: bytes, cause: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert encode_chunk([ImageItem(str(path), 0)], EncodeSettings(16, "raw")) == [Unreadable(str(path), cause)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    white = Image.new("RGB", (4, 5), "white").convert(mode)
    pixels = read_rgb(saved(white, "TIFF"))
    assert pixels.shape == (5, 4, 3)
    assert (pixels == 255).all()
