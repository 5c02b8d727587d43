from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import read_picture, write_label_picture

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def refused(path: Path, channels: int) -> str:
    with pytest.raises(VolumeError) as caught:
        read_picture(path, channels)
    assert caught.value.path == str(path)
    return caught.value.code


def test_colours_come_channel_first_and_top_row_first(tmp_path: Path) -> None:
    pixels = read_picture(saved(tmp_path / "a.png", COLOURS), 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, np.moveaxis(COLOURS, -1, 0))


def test_grey_of_8_and_16_bits(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", GREY), 1)[0], GREY)
    deep = saved(tmp_path / "b.png", GREY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(deep, 1)[0], GREY)


def test_grey_stored_as_colour_is_grey_but_colour_is_not(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", GREY, "RGB"), 1)[0], GREY)
    assert refused(saved(tmp_path / "b.png", COLOURS), 1) == "PICTURE_CHANNELS"
    assert refused(saved(tmp_path / "c.png", GREY), 3) == "PICTURE_CHANNELS"


def test_palettes_are_resolved(tmp_path: Path) -> None:
    two = np.where(COLOURS[..., :1] > 127, np.uint8([[[250, 10, 20]]]), np.uint8([[[0, 90, 255]]]))
    path = tmp_path / "a.png"
    Image.fromarray(two).quantize(4).save(path)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(read_picture(path, 3), np.moveaxis(two, -1, 0))


def test_an_alpha_channel_is_dropped_only_where_it_hides_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([COLOURS, np.full((5, 7), 255, dtype=np.uint8)])
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", opaque), 3), np.moveaxis(COLOURS, -1, 0))
    opaque[2, 3, 3] = 254
    assert refused(saved(tmp_path / "b.png", opaque), 3) == "PICTURE_CHANNELS"


def test_jpeg_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 8), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_picture(tmp_path / "a.jpg", 3)
    assert pixels.shape == (3, 16, 8)
    assert pixels[2, 0].min() > 200
    assert pixels[0, -1].min() > 200


def test_damaged_and_foreign_pictures_have_one_typed_error(tmp_path: Path) -> None:
    content = saved(tmp_path / "a.png", COLOURS).read_bytes()
    assert refused(tmp_path / "none.png", 3) == "FILE_MISSING"
    for kept in (0, 5, 20, len(content) // 2):
        (tmp_path / "b.png").write_bytes(content[:kept])
        assert refused(tmp_path / "b.png", 3) == "PICTURE_UNREADABLE"
    Image.fromarray(COLOURS).save(tmp_path / "c.bmp")
    assert refused(tmp_path / "c.bmp", 3) == "PICTURE_UNREADABLE"
    rng, codes = np.random.default_rng(1), set()
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 3):
            damaged[position] = rng.integers(256)
        (tmp_path / "d.png").write_bytes(damaged)
        try:
            read_picture(tmp_path / "d.png", 3)
        except VolumeError as error:
            codes.add(error.code)
    assert codes <= {"PICTURE_UNREADABLE", "PICTURE_CHANNELS"}


def test_label_pictures_keep_every_label(tmp_path: Path) -> None:
    labels = np.arange(35).reshape(5, 7)
    for factor, mode in ((1, "L"), (1000, "I;16")):
        path = write_label_picture(tmp_path / f"{factor}.png", labels * factor)
        with Image.open(path) as stored:
            assert stored.mode == mode
            np.testing.assert_array_equal(np.asarray(stored), labels * factor)


@pytest.mark.parametrize(
    ("labels", "name", "code"),
    [
        (np.zeros((2, 2)), "a.png", "LABEL_NOT_INTEGER"),
        (np.array([[-1]]), "a.png", "LABEL_NOT_INTEGER"),
        (np.array([[65536]]), "a.png", "LABEL_NOT_INTEGER"),
        (np.zeros((1, 2, 2), dtype=int), "a.png", "LABEL_GRID"),
        (np.zeros((2, 2), dtype=int), "a.jpg", "PICTURE_NAME"),
    ],
)
def test_label_pictures_that_would_lose_labels_are_refused(
    tmp_path: Path, labels: np.ndarray, name: str, code: str
) -> None:
    with pytest.raises(VolumeError) as caught:
        write_label_picture(tmp_path / name, labels)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())
