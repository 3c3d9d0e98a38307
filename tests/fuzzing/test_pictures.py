"""Damaged and hostile files of pictures: read or refused, the same way by every route."""

from __future__ import annotations

import base64
import io
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.support import tiny_llava, tiny_qwen2_5_vl, tiny_qwen3_vl
from tests.support.fuzzing import examples, json_values, mutated, quick
from transformers_litelvlm.data.samples import UnreadableImageError, read_picture
from transformers_litelvlm.utils.image_io import MAX_ASPECT_RATIO, MAX_PIXELS, load_rgb_image


PROCESSORS = {
    "llava": tiny_llava.tiny_processor(),
    "qwen2_5_vl": tiny_qwen2_5_vl.tiny_processor(),
    "qwen3_vl": tiny_qwen3_vl.QWEN3_VL.tiny_processor(),
}
TURNED = Image.Exif()
TURNED[274] = 6
# Format, mode, and how it is written.
FILES = [
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": bytes([0, 128, 255])}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {"exif": TURNED}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("JPEG", "L", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (9, 7), 5)]}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("BMP", "1", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "I;16", {}),
    ("TIFF", "F", {}),
    ("TIFF", "1", {"compression": "group4"}),
]


@cache
def file_of(number: int) -> bytes:
    file_format, mode, options = FILES[number]
    pixels = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32))
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_checksums(content: bytes) -> bytes:
    """A PNG whose checksums are right, so that its chunks are read."""
    result, place = bytearray(content), 8
    while place + 12 <= len(result):
        length = int.from_bytes(result[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(result)


@st.composite
def files(draw):
    number = draw(st.integers(0, len(FILES) - 1))
    content = draw(mutated(file_of(number)))
    return with_checksums(content) if FILES[number][0] == "PNG" and draw(st.booleans()) else content


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 0) -> bytes:
    """A PNG that says it has so many pixels, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def outcome(name: str, error: type[Exception], load, *arguments):
    """Pixels, or nothing if it was refused as it may be."""
    with quick(name):
        try:
            image = load(*arguments)
        except error as refused:
            message = str(refused)
            assert message and "\n" not in message and len(message) < 1000
            return None
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    assert max(image.size) <= MAX_ASPECT_RATIO * min(image.size)
    return np.asarray(image)


def assert_same(first, second):
    assert (first is None) == (second is None)
    assert first is None or np.array_equal(first, second)


# Tens of megabytes, if not gigabytes, of pixels in a few bytes (F9); headers without a picture; names that are none.
@example(png(13000, 13000))
@example(png(8000, 8000, bytes(100)))
@example(png(2**31 - 1, 2**31 - 1))
@example(png(0, 5))
@example(png(100, 1))
@example(b"")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"II*\x00\x08\x00\x00\x00" + b"\xff" * 40)
@example(b"BM" + b"\xff" * 60)
@example(b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 20)
@given(files())
@examples(600)
def test_files(content):
    by_bytes = outcome("picture by bytes", UnreadableImageError, read_picture, {"bytes": content}, "image 1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a picture")
        path.write_bytes(content)
        assert_same(by_bytes, outcome("picture by path", ValueError, load_rgb_image, path))
    encoded = base64.b64encode(content).decode()
    address = f"data:image/png;base64,{encoded}"
    assert_same(by_bytes, outcome("picture by address", ValueError, load_rgb_image, address))


@pytest.mark.parametrize("number", range(len(FILES)))
def test_files_that_are_whole(number):
    """What the mutations start from is read: otherwise the test above would show little."""
    read = outcome("picture by bytes", ValueError, read_picture, {"bytes": file_of(number)}, "image 1")
    assert read.shape == ((9, 7, 3) if "exif" in FILES[number][2] else (7, 9, 3))
    if FILES[number][1] in ("RGB", "RGBA", "P", "1") and FILES[number][0] in ("PNG", "BMP", "TIFF", "GIF"):
        with Image.open(io.BytesIO(file_of(number))) as image:
            assert np.array_equal(read, np.asarray(image.convert("RGBA").convert("RGB")))


@given(st.sampled_from(sorted(PROCESSORS)), files())
@examples(60)
def test_pictures_of_a_prompt(name, content):
    processor = PROCESSORS[name]
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    with quick(f"picture of a prompt of {name}"):
        try:
            features = processor(images=address, text=f"{processor.image_token} a dog", return_tensors="pt")
        except ValueError:
            return
    [(_, height, width)] = processor.visual_token_grids(features)
    shape = (1, 3, 32, 32) if name == "llava" else (4 * height * width, 96)
    assert features["pixel_values"].shape == shape and features["pixel_values"].isfinite().all()


paths = st.one_of(st.sampled_from([".", "/dev/null", "/nowhere/x.png", "\x00", "a" * 300, "~", "http://127.0.0.1:9/"]))


@example({"bytes": None})
@example({"bytes": "text"})
@example({"path": 7})
@example("http://127.0.0.1:9/a.png")  # F21
@example("/dev/zero")  # F11: a device never ends
@given(
    st.one_of(
        json_values,
        paths,
        st.fixed_dictionaries(
            {}, optional={"bytes": st.one_of(json_values, st.binary()), "path": st.one_of(json_values, paths)}
        ),
    )
)
@examples(200)
def test_pictures_of_rows(source):
    """Whatever a row of data has where a picture should be: an error that names the image."""
    with quick("picture of a row"), pytest.raises(UnreadableImageError, match="The picture of image 1 cannot be read"):
        read_picture(source, "image 1")


@given(st.sampled_from(["uint8", "int16", "float32", "bool", "object"]), st.lists(st.integers(0, 4), max_size=4))
@examples(100)
def test_arrays(dtype, shape):
    with quick("array"):
        try:
            image = load_rgb_image(np.ones(shape, dtype=dtype))
        except ValueError as error:
            assert "`image` arrays must" in str(error)
            return
    assert dtype == "uint8" and image.size == (shape[1], shape[0]) and np.asarray(image).min() == 1
