"""Reading a picture, whatever it is, as upright 8-bit RGB."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transformers_litelvlm.utils.messages import shortened


ImageInput = str | os.PathLike | Image.Image | np.ndarray

# What is read, and nothing else: each further format is a decoder that a file from anywhere can reach. JPEG covers the
# files of phones that hold several pictures (MPO).
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# Memory grows with the pixels: masks are made at the size of the picture, for each sentence.
MAX_PIXELS = 64_000_000

# CLIP resizes the short side to 336 pixels and SAM the long side to 1024: beyond this, the first makes gigabytes of a
# picture and the second leaves less than a pixel of it.
MAX_ASPECT_RATIO = 100

# Pillow decodes run lengths of BMP files in Python, and adds what a file lacks pixel by pixel: 0.3 s for a million.
_BMP_RUN_LENGTHS = (1, 2)
_MAX_RUN_LENGTH_PIXELS = 1_000_000

_ROWS_AT_ONCE = 256
_FETCH_SECONDS = 60
_LONGEST_NAME = 255  # of a file, in bytes, on all common file systems


def open_picture(source: str | os.PathLike | BinaryIO, name: str | os.PathLike) -> Image.Image:
    """The picture in a file of one of PICTURE_FORMATS, as it is. Its pixels are decoded when they are first asked for.

    Args:
        source: the file.
        name: what to call it in an error.

    Raises:
        ValueError: it is no such file, or not there; the message names it and the formats.
    """
    if isinstance(source, str | os.PathLike) and os.path.exists(source) and not os.path.isfile(source):
        raise ValueError(f"`image` {name} is not a regular file. Give a picture file.")  # a pipe would never end
    try:
        picture = Image.open(source, formats=PICTURE_FORMATS)
    except Exception as error:  # decoders raise all kinds, see _upright_rgb
        raise ValueError(_unreadable(name, error)) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"`image` {name} has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}: scale it down, "
            "or set `transformers_litelvlm.utils.image_io.MAX_PIXELS`."
        )
    has_runs = picture.format == "BMP" and picture.info.get("compression") in _BMP_RUN_LENGTHS
    if has_runs and picture.width * picture.height > _MAX_RUN_LENGTH_PIXELS:
        raise ValueError(
            f"`image` {name} is a BMP of {picture.width} x {picture.height} pixels compressed by run lengths; such "
            f"files are read up to {_MAX_RUN_LENGTH_PIXELS:,} pixels: save it as PNG."
        )
    return picture


def load_rgb_image(image: ImageInput) -> Image.Image:
    """A picture as upright 8-bit RGB (mode "RGB"). The input is never changed.

    The EXIF orientation is applied, so that masks fit what a viewer shows. Transparency is dropped the way
    `PIL.Image.convert("RGB")` and `load_image` of Transformers drop it: the colours stored under transparent pixels
    become visible. Its image processors put a PIL picture on white: to have that, composite the picture first.
    Greyscale is repeated over the three channels; 16-bit greyscale is scaled to 8 bits, not clipped. Of an animation,
    the first frame is taken.

    Args:
        image: a path or an `http(s)://` address of a file in one of PICTURE_FORMATS, its content in base64, alone or
            in a `data:image/...` address, a picture, or an array of shape (height, width), (height, width, 1),
            (height, width, 3) or (height, width, 4) and type uint8.

    Raises:
        ValueError: the picture does not exist, is truncated, cannot be understood, is in another format, or has one
            side more than MAX_ASPECT_RATIO times the other; the message names it.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _upright_rgb(image, name=getattr(image, "filename", "") or "the picture given")
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"`image` must be a path, a `PIL.Image.Image` or a numpy array (height, width, channels), got"
            f" {type(image).__name__}."
        )
    if isinstance(image, str) and is_url(image):
        return _from_url(image)
    content = _base64_content(image) if isinstance(image, str) and not os.path.exists(image) else None
    if content is not None:
        name = shortened(str(image))
        with open_picture(io.BytesIO(content), name) as picture:
            return _upright_rgb(picture, name)
    return _from_file(Path(image))


def _base64_content(text: str) -> bytes | None:
    """The file that a text is, as transformers reads it; `None` for what must be a path."""
    is_address = text.startswith("data:image/")
    encoded = text.partition(",")[2] if is_address else text
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:  # not base64, or not ASCII
        content = b""
    # A short name without a dot may be base64, too.
    return content if is_address or len(content) > _LONGEST_NAME or _is_picture(content) else None


def _is_picture(content: bytes) -> bool:
    try:
        open_picture(io.BytesIO(content), "")
    except ValueError:
        return False
    return True


def is_url(image: str) -> bool:
    """Whether it is an address, not a path."""
    return image.startswith(("http://", "https://"))


def is_path(image: str) -> bool:
    """Whether it is the path of a file, not an address and not a picture in base64."""
    return not is_url(image) and _base64_content(image) is None


def _from_file(path: Path) -> Image.Image:
    if not os.path.exists(path):  # of the `Path`, it raises for names that are too long
        raise ValueError(
            f"`image` {shortened(str(path))} does not exist. Check the path (it is relative to {Path.cwd()})."
        )
    if path.is_dir():
        raise ValueError(f"`image` {path} is a folder. Give one picture file.")
    with open_picture(path, path) as picture:
        return _upright_rgb(picture, name=path)


def _from_url(address: str) -> Image.Image:
    from huggingface_hub.utils import httpx  # as transformers fetches pictures

    try:
        content = httpx.get(address, timeout=_FETCH_SECONDS, follow_redirects=True).raise_for_status().content
    except Exception as error:  # of many kinds: names, certificates, sockets, statuses
        raise ValueError(f"`image` {shortened(address)} cannot be fetched ({_reason(error)}).") from error
    with open_picture(io.BytesIO(content), shortened(address)) as picture:
        return _upright_rgb(picture, name=shortened(address))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(
            f"`image` arrays must hold uint8 values from 0 to 255, got {array.dtype}. Scale them to that range and"
            " convert them with `.astype('uint8')`."
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or array.size == 0:
        raise ValueError(
            "`image` arrays must have shape (height, width) or (height, width, 1, 3 or 4) and hold at least one"
            f" pixel, got {array.shape}."
        )
    return _upright_rgb(Image.fromarray(np.ascontiguousarray(array)), name="array")


def _upright_rgb(picture: Image.Image, name: str | Path) -> Image.Image:
    try:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:
        # A broken file surfaces as OSError, SyntaxError, EOFError, struct.error, DecompressionBombError and more,
        # depending on the format. All mean the same to the user.
        raise ValueError(_unreadable(name, error)) from error
    if picture.width == 0 or picture.height == 0:
        raise ValueError(f"`image` {name} has no pixels: {picture.width} x {picture.height}.")
    if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
        raise ValueError(
            f"`image` {name} is {picture.width} x {picture.height} pixels, one side more than {MAX_ASPECT_RATIO} times"
            " the other: too narrow for the vision tower. Crop or pad it."
        )
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _deep_grey_to_8_bit(picture, name)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns about a transparency it drops anyway
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # turning it upright made a copy


def _deep_grey_to_8_bit(picture: Image.Image, name: str | Path) -> Image.Image:
    """`convert("RGB")` clips 16-bit, 32-bit and float greyscale at 255, which turns most of such pictures white."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        limit = 1.0 if high <= 1.0 else 255.0
    else:
        limit = 65535.0 if picture.mode.startswith("I;16") or high > 255 else 255.0
    if not (0 <= low and high <= limit):
        raise ValueError(
            f"`image` {name} holds greyscale values from {low:g} to {high:g}: their range is not known. Scale them to"
            " 8 bits (0 to 255) first."
        )
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS_AT_ONCE):  # in float64, a whole picture of MAX_PIXELS takes gigabytes
        rows = slice(top, top + _ROWS_AT_ONCE)
        scaled[rows] = np.round(values[rows].astype(np.float64) * (255.0 / limit))
    return Image.fromarray(scaled)


def _unreadable(name: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"`image` {name} is not there ({_reason(error)}): correct the path."
    formats = f"{', '.join(PICTURE_FORMATS[:-1])} or {PICTURE_FORMATS[-1]}"
    return (
        f"`image` {name} cannot be read as a picture ({_reason(error)}). The file may be truncated, damaged, in"
        f" another format than {formats}, or no picture at all: open it in a viewer, or save it again as PNG or JPEG."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names the file again, or an object in memory
        return "unknown format"
    if isinstance(error, OSError) and error.filename is not None:  # its own text repeats the name, however long
        return f"{error.strerror}: {shortened(str(error.filename))}"
    return " ".join(str(error).split()) or type(error).__name__
