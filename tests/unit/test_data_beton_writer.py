"""The `.beton` writer and reader: the same bytes for any number of encoders, and the images read back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from components.data.beton_reader import BetonFile
from components.data.beton_writer import ROW, BetonWriter, EncodedImage, first_page
from components.data.encode import EncodeSettings, ImageItem, encode_pixels, encode_split, shrink
from components.data.jpeg import decode_jpeg, decoder_name, jpeg_size
from components.errors import UserError

PAGE = 2 << 20
JPG, RAW = EncodeSettings(64, "jpg"), EncodeSettings(64, "raw")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[ImageItem]:
    folder, rng, found = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for k in range(150):
        height, width = rng.integers(40, 130, 2)
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        path = folder / f"{k:03d}.{'png' if k % 2 else 'jpg'}"
        Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)
        found.append(ImageItem(str(path), k % 7))
    return found


def test_any_number_of_encoders_gives_the_same_bytes(items: list[ImageItem], tmp_path: Path) -> None:
    digests = set()
    for workers in (1, 2, 3):
        path = tmp_path / f"{workers}.beton"
        encode_split(items, path, JPG, page_size=PAGE, num_workers=workers)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.beton", "2.beton", "3.beton"]


@pytest.mark.parametrize("settings", [JPG, RAW], ids=["jpg", "raw"])
def test_encoded_images_are_read_back(items: list[ImageItem], tmp_path: Path, settings: EncodeSettings) -> None:
    encode_split(items, tmp_path / "x.beton", settings, page_size=PAGE)
    file = BetonFile(tmp_path / "x.beton", num_samples=150, num_classes=7)
    assert file.labels.tolist() == [item.label for item in items]
    for index in range(0, 150, 11):
        with Image.open(items[index].path) as image:
            expected = shrink(np.array(image.convert("RGB")), 64)
        assert min(expected.shape[:2]) <= 64
        found = file.image(index)
        assert found.shape == expected.shape
        limit = 0 if settings.mode == "raw" else 4
        assert np.abs(found.astype(int) - expected).mean() <= limit


def test_the_shorter_side_is_shrunk_and_never_enlarged() -> None:
    def size_of(height: int, width: int) -> tuple[int, ...]:
        return shrink(np.zeros((height, width, 3), np.uint8), 64).shape[:2]

    assert [size_of(*hw) for hw in ((128, 256), (256, 128), (64, 300), (20, 30))] == [
        (64, 128),
        (128, 64),
        (64, 300),
        (20, 30),
    ]


def test_the_longer_side_is_rounded_down_as_torchvision_does() -> None:
    """torchvision 0.29: `int(size * long / short)`; 256 * 562 / 375 is 383.66."""
    for height, width, expected in ((375, 562, (256, 383)), (562, 375, (383, 256)), (500, 333, (384, 256))):
        assert shrink(np.zeros((height, width, 3), np.uint8), 256).shape[:2] == expected


def test_pages_are_packed_and_images_do_not_straddle_them(tmp_path: Path) -> None:
    pixels = np.arange(700 * 700 * 3, dtype=np.uint32).astype(np.uint8).reshape(700, 700, 3)  # 1.47 MB of a 2 MiB page
    small = np.full((10, 10, 3), 9, np.uint8)
    with BetonWriter(tmp_path / "x.beton", 4, page_size=PAGE) as writer:
        for image in (pixels, small, pixels, small):
            writer.add(encode_pixels(image, 1, RAW))
    file = BetonFile(tmp_path / "x.beton")
    start = first_page(4, PAGE)
    assert file.pointers.tolist() == [start, start + pixels.nbytes, start + PAGE, start + PAGE + pixels.nbytes]
    assert (file.image(2) == pixels).all()
    assert file.uniform_pixels() is None


def test_an_image_of_exactly_a_page_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "x.beton", 2, page_size=PAGE) as writer:
        for _ in range(2):
            writer.add(EncodedImage(0, 5, 5, bytes(PAGE - 1) + b"x", 0))
    assert len(BetonFile(tmp_path / "x.beton")) == 2
    with (
        pytest.raises(UserError, match=r"page_size.*does not fit"),
        BetonWriter(tmp_path / "y.beton", 1, page_size=PAGE) as writer,
    ):
        writer.add(EncodedImage(0, 5, 5, bytes(PAGE + 1), 0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton"]


@pytest.mark.parametrize(("second", "page"), [(10, 0), (11, 1)])
def test_a_page_is_filled_to_its_last_byte(tmp_path: Path, second: int, page: int) -> None:
    with BetonWriter(tmp_path / "x.beton", 2, page_size=PAGE) as writer:
        for size in (PAGE - 10, second):
            writer.add(EncodedImage(0, 5, 5, b"x" * size, 0))
    start = first_page(2, PAGE)
    assert BetonFile(tmp_path / "x.beton").pointers[1] == (start + PAGE if page else start + PAGE - 10)


def test_uniform_raw_images_are_one_array(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    with BetonWriter(tmp_path / "x.beton", 20, page_size=PAGE) as writer:
        for label, image in enumerate(images):
            writer.add(encode_pixels(image, label, RAW))
    assert np.array_equal(BetonFile(tmp_path / "x.beton").uniform_pixels(), images)


def test_source_jpegs_can_be_kept_as_they_are(items: list[ImageItem], tmp_path: Path) -> None:
    keep = EncodeSettings(80, "jpg", keep_jpeg=True)
    encode_split(items[:20], tmp_path / "x.beton", keep, page_size=PAGE)
    file = BetonFile(tmp_path / "x.beton")
    kept = [file.stored_bytes(k).tobytes() == Path(item.path).read_bytes() for k, item in enumerate(items[:20])]
    fits = []
    for item in items[:20]:
        with Image.open(item.path) as image:
            fits.append(item.path.endswith(".jpg") and min(image.size) <= 80)
    assert kept == fits
    assert any(kept)
    assert not all(kept[::2])
    file.check_jpeg_headers()


def test_jpegs_of_every_kind_become_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    modes = {"L": {}, "RGB": {"progressive": True}, "CMYK": {}, "P": {}, "RGBA": {}, "I;16": {}}
    items = []
    for mode, options in modes.items():
        path = tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode in ('L', 'RGB', 'CMYK') else 'png'}"
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)) if mode == "I;16" else None
        (image or Image.fromarray(pixels).convert(mode)).save(path, **options)
        items.append(ImageItem(str(path), 0))
    encode_split(items, tmp_path / "x.beton", EncodeSettings(64, "jpg", keep_jpeg=True), page_size=PAGE)
    file = BetonFile(tmp_path / "x.beton")
    assert [file.image(k).shape for k in range(len(items))] == [(20, 30, 3)] * len(items)


def test_the_fast_dct_is_used(tmp_path: Path) -> None:
    """libjpeg-turbo's fast DCT gives other pixels than OpenCV's accurate one, by a few levels."""
    assert decoder_name() == "libjpeg-turbo", "libturbojpeg is not installed: run `make setup`"
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), (96, 64))
    data = np.frombuffer(encode_pixels(smooth, 0, JPG).data, np.uint8)
    ours, accurate = decode_jpeg(data), cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]
    assert jpeg_size(data) == (96, 64)
    difference = np.abs(ours.astype(int) - accurate)
    assert 0 < difference.max() <= 12


def test_the_layout_is_ffcvs() -> None:
    assert ROW.itemsize == 24
    assert [ROW.fields[name][1] for name in ("image", "label")] == [0, 16]  # type: ignore[index]
    assert first_page(1, PAGE) == PAGE
    assert first_page((PAGE - 24 - 2082) // 24 + 1, PAGE) == 2 * PAGE
