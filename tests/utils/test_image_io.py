"""Reading pictures: upright, RGB, and errors that name the file."""

import base64
import http.server
import io
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from tests.support.warm_python import memory_of
from transformers_litelvlm.data.samples import UnreadableImageError, read_picture
from transformers_litelvlm.utils.image_io import PICTURE_FORMATS, load_rgb_image, open_picture


SOURCES = Path(__file__).parents[2] / "src"


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


def test_transparency_is_dropped_as_load_image_does():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert load_rgb_image(image).getpixel((0, 0)) == load_image(image).getpixel((0, 0)) == (10, 20, 30)
    assert convert_to_rgb(image, return_numpy=True)[0, 0].tolist() == [255] * 3  # as the docstring says


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


def test_deep_greyscale_of_many_rows():
    """They are scaled some at a time."""
    values = np.random.default_rng(0).integers(0, 65536, (700, 9), dtype=np.uint16)
    loaded = np.asarray(load_rgb_image(Image.fromarray(values)))[..., 0]
    assert np.array_equal(loaded, np.round(values.astype(np.float64) * (255 / 65535)).astype(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path, dtype):
    """A PNG of some kilobytes; 16-bit greyscale took 1.7 GB."""
    shape = (8000, 8000) if dtype == np.uint16 else (8000, 8000, 3)
    Image.fromarray(np.full(shape, 100, dtype)).save(tmp_path / "large.png", compress_level=1)
    read = f"assert load_rgb_image({str(tmp_path / 'large.png')!r}).size == (8000, 8000)"
    assert 200 < memory_of("from transformers_litelvlm.utils.image_io import load_rgb_image", read) < 700


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
    image = picture()
    load_rgb_image(image).paste("red", (0, 0, 3, 3))
    assert image == picture()


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


def encoded(format: str, mode: str = "RGB", **options) -> bytes:
    """A picture as a file of that format."""
    file = io.BytesIO()
    picture(mode=mode).save(file, format=format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", [*PICTURE_FORMATS, "MPO"])
def test_every_format_that_is_promised_is_read(tmp_path, format):
    """MPO is what many phones write into a .jpg: a JPEG with more pictures behind it."""
    options = {"save_all": True, "append_images": [picture()]} if format == "MPO" else {}
    (tmp_path / "a.jpg").write_bytes(encoded(format, **options))
    for source in (tmp_path / "a.jpg", {"bytes": (tmp_path / "a.jpg").read_bytes()}):
        assert read_picture(source, "image 1").size == picture().size


@pytest.mark.parametrize("format", ["EPS", "PCX", "DDS", "ICNS", "PPM", "SGI", "TGA", "FITS"])
def test_other_formats_are_refused(tmp_path, format):
    """Also under the name of a picture: what counts is the content, and no other decoder sees it."""
    header = b"".join(
        card.ljust(80) for card in (b"SIMPLE  =                    T", b"BITPIX  =                    8")
    )
    (tmp_path / "a.png").write_bytes(header.ljust(2880) if format == "FITS" else encoded(format))
    said = r"cannot be read as a picture \(.*another format than PNG, JPEG, WEBP, BMP, GIF or TIFF"
    with pytest.raises(ValueError, match=rf"a\.png {said}"):
        load_rgb_image(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=f"image 7 {said}"):
        read_picture({"bytes": (tmp_path / "a.png").read_bytes()}, "image 7")


def test_every_file_is_opened_with_the_list_of_formats():
    """Pillow alone tries every decoder that it has, and `load_image` of transformers opens with Pillow alone."""
    opening = re.compile(r"Image\.open\(.*\)|(?<!def )\b(?:load_image|fetch_images)\(.+\)")
    calls = {path.name: opening.findall(path.read_text(encoding="utf-8")) for path in SOURCES.rglob("*.py")}
    assert calls.pop("image_io.py") == ["Image.open(source, formats=PICTURE_FORMATS)"]
    assert {name: found for name, found in calls.items() if found} == {}


def test_a_header_that_promises_too_many_pixels(tmp_path):
    """Pillow itself refuses it, by an error that is no ValueError; a path and embedded bytes are named alike."""
    file = bytearray(encoded("PNG"))
    file[16:24] = struct.pack(">II", 20_000, 20_000)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    (tmp_path / "a.png").write_bytes(file)
    said = "image 7 cannot be read: .*cannot be read as a picture \\(Image size \\(400000000 pixels\\) exceeds limit"
    for source in (str(tmp_path / "a.png"), {"bytes": bytes(file)}):
        with pytest.raises(UnreadableImageError, match=said):
            read_picture(source, "image 7")


@pytest.fixture
def served():
    """Serves what is put into the dict, by path, on this machine; the rest is not found."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b"nothing here"))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()


def test_pictures_at_an_address(served):
    """The same formats, and an answer that is no picture is not taken for one."""
    address, files = served
    files.update({"/a.png": encoded("PNG"), "/a.eps": encoded("EPS")})
    np.testing.assert_array_equal(np.asarray(load_rgb_image(f"{address}/a.png")), np.asarray(picture()))
    with pytest.raises(ValueError, match=r"a\.eps cannot be read as a picture \(.*another format than PNG"):
        load_rgb_image(f"{address}/a.eps")
    with pytest.raises(ValueError, match=r"b\.png cannot be fetched \(.*404"):
        load_rgb_image(f"{address}/b.png")


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


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (load_rgb_image, lambda path: open_picture(path, path)):
        with pytest.raises(ValueError, match=r"pipe\.png is not a regular file"):
            read(tmp_path / "pipe.png")


def test_a_limit_of_pixels(tmp_path, monkeypatch):
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")  # a few kilobytes
    with pytest.raises(ValueError, match=r"large\.png has 9000 x 8000 pixels, more than 64,000,000: scale it down"):
        load_rgb_image(tmp_path / "large.png")
    monkeypatch.setattr("transformers_litelvlm.utils.image_io.MAX_PIXELS", 9000 * 8000)
    assert load_rgb_image(tmp_path / "large.png").size == (9000, 8000)


def bmp_of_runs(width, height):
    """A BMP whose rows each hold one run of 7 pixels of colour 1, red; the rest of a row is left to the reader."""
    colours = bytes(4) + bytes((0, 0, 255, 0)) + bytes(4 * 254)
    runs = b"\x07\x01\x00\x00" * height + b"\x00\x01"
    start = 14 + 40 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + colours + runs


def test_a_limit_of_run_lengths(tmp_path):
    for height in (900, 9000):
        (tmp_path / f"{height}.bmp").write_bytes(bmp_of_runs(1000, height))
    small = np.asarray(load_rgb_image(tmp_path / "900.bmp"))
    assert small.shape == (900, 1000, 3) and small[:, :7, 0].min() == 255 and small[..., 0].sum() == 900 * 7 * 255
    with pytest.raises(ValueError, match="BMP of 1000 x 9000 pixels compressed by run lengths; such.*save it as PNG"):
        load_rgb_image(tmp_path / "9000.bmp")


def as_text(image, form="png", **options):
    """A picture as a file in base64."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("size", [(7, 5), (2, 2), (300, 200)])
def test_base64_as_transformers_reads_it(size):
    original = picture(*size)
    plain = as_text(original)
    broken = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))  # as mail has it
    for text in (plain, broken, f"data:image/png;base64,{plain}"):
        assert np.array_equal(np.asarray(load_rgb_image(text)), np.asarray(original))
        assert np.array_equal(np.asarray(load_image(text)), np.asarray(original))


def test_base64_is_turned_upright_too():
    exif = Image.Exif()
    exif[274] = 6
    assert load_rgb_image(f"data:image/png;base64,{as_text(picture(7, 5), exif=exif)}").size == (5, 7)


def test_paths_are_not_taken_for_base64(tmp_path, monkeypatch):
    """Names without a dot are valid base64, if their length is a multiple of four."""
    monkeypatch.chdir(tmp_path)
    picture(9, 9).save("photo123", "png")
    assert load_rgb_image("photo123").size == (9, 9)
    for missing in ("photo456", "some/folder/photo123", "x" * 200):
        with pytest.raises(ValueError, match="does not exist. Check the path"):
            load_rgb_image(missing)


@pytest.mark.parametrize(
    "text, message",
    [
        ("A" * 100_000, "cannot be read as a picture"),
        ("é" * 100_000, "does not exist"),
        ("long.name/" * 10_000, "does not exist"),
        ("data:image/png;base64," + "A" * 100_000, "cannot be read as a picture"),
        ("data:image/png;base64,%%%" + "A" * 100_000, "cannot be read as a picture"),
        ("data:image/png;base64," + as_text(picture(300, 200))[:50_000], "cannot be read as a picture"),
        ("data:image/svg+xml," + "<svg></svg>" * 10_000, "cannot be read as a picture"),
        ("data:image/png;base64", "cannot be read as a picture"),
        ("data:image/x;base64," + as_text(picture(), "ppm"), "in another format than PNG"),
        ("http://127.0.0.1:9/" + "x" * 100_000, "cannot be fetched"),
    ],
)
def test_messages_about_long_texts_are_short(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_rgb_image(text)
    assert text[:20] in str(caught.value) and len(str(caught.value)) < 450
