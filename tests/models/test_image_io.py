"""Reading pictures: upright, RGB, and errors that name the file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_litelvlm.models.image_io import load_rgb_image


def picture(width=7, height=5, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_path_string_picture_and_array_give_the_same_pixels(tmp_path):
    original = picture()
    original.save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), original, np.asarray(original)):
        loaded = load_rgb_image(image)
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(original))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """All eight stored forms of the same scene come out as that scene."""
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    loaded = load_rgb_image(tmp_path / "photo.png")
    assert loaded.size == (32, 16)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))


@pytest.mark.filterwarnings("error")
def test_every_mode_becomes_rgb(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"):
        assert load_rgb_image(picture(mode=mode)).mode == "RGB", mode
    transparent = picture(mode="P")
    transparent.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    assert load_rgb_image(tmp_path / "p.png").mode == "RGB"


def test_transparency_is_dropped_as_transformers_does():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert load_rgb_image(image).getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0)) == (10, 20, 30)


def test_greyscale_is_repeated():
    np.testing.assert_array_equal(np.asarray(load_rgb_image(np.array([[0, 7, 255]], np.uint8)))[0, :, 1], [0, 7, 255])


def test_deep_greyscale_is_scaled_not_clipped(tmp_path):
    """`convert("RGB")` alone gives 255 wherever a 16-bit value is above 255."""
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = [0, 1, 128, 255]
    assert np.asarray(load_rgb_image(tmp_path / "deep.png"))[0, :, 0].tolist() == expected
    assert np.asarray(load_rgb_image(Image.fromarray(values.astype(np.int32))))[0, :, 0].tolist() == expected
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(load_rgb_image(unit))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="range is not known"):
        load_rgb_image(Image.fromarray(np.array([[-3.0, 0.5]], np.float32)))


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100)])
def test_one_pixel_high_or_wide(tmp_path, size):
    Image.new("L", size).save(tmp_path / "thin.png")
    assert load_rgb_image(tmp_path / "thin.png").size == size


def test_too_narrow_for_any_model(tmp_path):
    Image.new("L", (2001, 20)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match=r"thin.png is 2001 x 20 pixels.*100 times.*Crop or pad"):
        load_rgb_image(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="1 x 101 pixels"):
        load_rgb_image(np.zeros((101, 1), np.uint8))


def test_the_input_is_not_changed():
    image = picture(mode="RGBA")
    before = image.copy()
    load_rgb_image(image).paste("red", (0, 0, 3, 3))
    assert image.mode == "RGBA" and image == before


def truncated_file(folder: Path, suffix: str) -> Path:
    whole = io.BytesIO()
    picture(200, 150).save(whole, format={"jpg": "jpeg"}.get(suffix, suffix))
    path = folder / f"truncated.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = truncated_file(tmp_path, suffix)
    with pytest.raises(ValueError, match=rf"truncated\.{suffix} cannot be read as a picture"):
        load_rgb_image(path)
    try:
        lazily_opened = Image.open(path)
    except OSError:
        return  # this format is found out at once
    with pytest.raises(ValueError, match=rf"truncated\.{suffix} cannot be read as a picture"):
        load_rgb_image(lazily_opened)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("notes.txt", "empty.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            load_rgb_image(tmp_path / name)
    with pytest.raises(ValueError, match="nothing_here.png does not exist"):
        load_rgb_image(tmp_path / "nothing_here.png")
    with pytest.raises(ValueError, match="is a folder"):
        load_rgb_image(tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 3), np.float32), "float32"),
        (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        ([1, 2], "list"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_understood_is_said(image, message):
    with pytest.raises(ValueError, match=message):
        load_rgb_image(image)
