"""Pictures of requests: bytes of a file, base64 or an address, as upright RGB. Never a path of this machine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from typing import Any

from huggingface_hub.utils import httpx  # as transformers fetches pictures
from PIL import Image

from transformers_litelvlm.serving.errors import ServiceError, invalid_input
from transformers_litelvlm.utils.image_io import is_url, load_rgb_image, open_picture
from transformers_litelvlm.utils.messages import shortened


FETCH_SECONDS = 30


def picture_from_text(text: Any, allow_urls: bool, max_bytes: int) -> bytes:
    """The file that `image` of a JSON request is. For a thread without an event loop.

    Args:
        text: base64, alone or in a `data:image/...` address; or an `http(s)` address.
        allow_urls: whether addresses are fetched.
        max_bytes: of a file that is fetched.

    Raises:
        ServiceError: it is something else, or an address that may not or cannot be fetched.
    """
    if not isinstance(text, str) or not text:
        raise ServiceError("invalid", "`image` must be a picture in base64, or a file in a form.")
    if is_url(text):
        if not allow_urls:
            raise ServiceError("invalid", "`image` is an address, and this server does not fetch pictures: send it.")
        return fetch(text, max_bytes)
    encoded = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError as error:
        raise ServiceError("invalid", f"`image` is no base64: {error}.") from error


def fetch(address: str, max_bytes: int, headers: dict[str, str] | None = None) -> bytes:
    """The file at an `http(s)` address. For a thread without an event loop. Raises ServiceError if it cannot be
    fetched in [`FETCH_SECONDS`], or is larger than `max_bytes`.

    With `headers`, which may have a key, no redirects are followed.
    """
    return asyncio.run(_fetch(address, max_bytes, headers))


async def _fetch(address: str, max_bytes: int, headers: dict[str, str] | None) -> bytes:
    # Only a task can be given up while another server sends it a byte at a time.
    content = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx.AsyncClient(timeout=FETCH_SECONDS, headers=headers, follow_redirects=headers is None) as client,
            client.stream("GET", address) as answer,
        ):
            answer.raise_for_status()
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > max_bytes:
                    raise ServiceError(
                        "too_large", f"The file at {shortened(address)} has more than {max_bytes} bytes."
                    )
    except ServiceError:
        raise
    except TimeoutError as error:
        raise ServiceError("invalid", f"{shortened(address)} could not be fetched in {FETCH_SECONDS} s.") from error
    except Exception as error:  # of many kinds: names, certificates, sockets, statuses
        why = " ".join(str(error).split())
        raise ServiceError("invalid", f"{shortened(address)} cannot be fetched ({why}).") from error
    return bytes(content)


def read_picture(content: bytes, max_pixels: int) -> Image.Image:
    """A file as upright RGB. Raises ServiceError if it is no picture, or has more than `max_pixels` pixels, which is
    known before they are decoded."""
    with invalid_input(), open_picture(io.BytesIO(content), "in the request") as picture:
        if picture.width * picture.height > max_pixels:
            raise ValueError(
                f"`image` has {picture.width} x {picture.height} pixels, more than {max_pixels}: scale it down."
            )
        return load_rgb_image(picture)


def digest_of(picture: Image.Image) -> str:
    """Equal for pictures of the same size and pixels, whatever the files they came from."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()
