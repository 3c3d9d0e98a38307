"""The body of a request: JSON or a form, read within limits, as what is asked of the model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from transformers_litelvlm.models.pruned_config import PRUNING_ALIASES
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.pictures import picture_from_text
from transformers_litelvlm.utils.messages import did_you_mean, quoted


# Fields of a request that are pruning settings -> keywords of `change_pruning`.
SETTINGS = {"preset": "pruning_preset"} | {field: keyword for keyword, field in PRUNING_ALIASES.items()}
FIELDS = ("image", "sentences", *SETTINGS)
# Far more than a model reads: splitting 19 MB into tokens took two minutes, only to refuse them.
LONGEST_SENTENCE = 10_000
# In a form everything is text. These fields are JSON there; others are as they are written.
_JSON_FIELDS = ("budget", "retention_ratio", "method_options", "then")


@dataclass(frozen=True)
class SegmentRequest:
    """What a client asks."""

    image: bytes  # the file of a picture
    sentences: list[str]  # what to find in it
    pruning: dict[str, Any] = field(default_factory=dict)  # keywords of `change_pruning`, for this request alone


class _TooLargeError(Exception):
    """The body passes the limit."""


async def read_request(request: Request, limits: Limits, allow_urls: bool) -> SegmentRequest:
    """Read and check the body of a request for masks. Raises ServiceError, see [`~serving.errors.CODES`]."""
    fields = await read_fields(request, limits)
    content = fields.get("image")
    if not isinstance(content, bytes):
        # Off the event loop: an address is fetched.
        content = await asyncio.to_thread(picture_from_text, content, allow_urls, limits.max_request_bytes)
    return as_request({**fields, "image": content}, limits)


async def read_fields(request: Request, limits: Limits) -> dict[str, Any]:
    """The fields of a body, JSON or a form. Not one byte more is read than the limit allows. Raises ServiceError, see
    [`~serving.errors.CODES`]."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    announced = request.headers.get("content-length", "0")
    too_large = f"The body is larger than {limits.max_request_mb} MB."
    if kind not in ("application/json", "multipart/form-data"):
        raise ServiceError("unsupported_media_type", "Send application/json or multipart/form-data.")
    if announced.isdecimal() and int(announced[:20]) > limits.max_request_bytes:
        raise ServiceError("too_large", too_large)
    try:
        async with asyncio.timeout(limits.read_seconds):
            limited = _limited(request, limits.max_request_bytes)
            return await (_read_json if kind == "application/json" else _read_form)(limited, limits)
    except TimeoutError as error:
        raise ServiceError("timeout", f"The body took longer than {limits.read_seconds} s.") from error
    except _TooLargeError as error:
        raise ServiceError("too_large", too_large) from error


def as_request(fields: Mapping[str, Any], limits: Limits) -> SegmentRequest:
    """What the fields of a body ask. Sentences and settings are looked at by the processor and `change_pruning`."""
    check_names(fields, FIELDS)
    sentences = checked_sentences(fields.get("sentences"), limits)
    pruning = {keyword: fields[name] for name, keyword in SETTINGS.items() if name in fields}
    return SegmentRequest(fields["image"], sentences, pruning)


def check_names(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ServiceError for a field that is not known."""
    if unknown := sorted(set(fields) - set(known)):
        near = did_you_mean(unknown, known)
        raise ServiceError("invalid", f"Unknown fields {quoted(unknown)}.{near} There are: {', '.join(known)}.")


def checked_sentences(sentences: Any, limits: Limits) -> list[str]:
    """Sentences, or one, as a list. Raises ServiceError if there are none or too many, or one is too long."""
    sentences = [sentences] if isinstance(sentences, str) else sentences
    if not isinstance(sentences, list) or not sentences:
        raise ServiceError("invalid", "`sentences` must be one or more sentences.")
    if len(sentences) > limits.max_sentences:
        raise ServiceError("invalid", f"`sentences` has {len(sentences)}, at most {limits.max_sentences} are allowed.")
    longest = max((len(each) for each in sentences if isinstance(each, str)), default=0)
    if longest > LONGEST_SENTENCE:
        raise ServiceError("invalid", f"A sentence has {longest} characters, at most {LONGEST_SENTENCE} are allowed.")
    return sentences


def _limited(request: Request, max_bytes: int) -> Request:
    """The same request, whose body raises [`_TooLargeError`]."""
    seen = 0

    async def receive() -> Any:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _TooLargeError
        return message

    return Request(request.scope, receive)


async def _read_json(request: Request, limits: Limits) -> dict[str, Any]:
    fields = _parsed(await request.body(), "bad_request", "The body")
    if not isinstance(fields, dict):
        raise ServiceError("bad_request", "The body must be a JSON object.")
    return fields


async def _read_form(request: Request, limits: Limits) -> dict[str, Any]:
    try:
        form = await request.form(
            max_files=1, max_fields=limits.max_sentences + len(FIELDS), max_part_size=limits.max_request_bytes
        )
    except (HTTPException, MultiPartException) as error:
        raise ServiceError("bad_request", f"The body is no form: {quoted(str(error))}.") from error
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields and name != "sentences":
            raise ServiceError("bad_request", f"The field {quoted(name)} is there twice.")
        if isinstance(value, str) and name in _JSON_FIELDS:
            fields[name] = _parsed(value, "invalid", f"`{name}`")
        elif name == "sentences":
            fields.setdefault(name, []).append(value)
        elif isinstance(value, str):
            fields[name] = value
        else:
            fields[name] = await value.read()
    return fields


def _parsed(text: str | bytes, code: str, what: str) -> Any:
    """JSON without the numbers that it does not have, and with each name once in an object. What Python cannot read
    is an error, too: a few thousand levels are too deep, and a few thousand digits too many."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{quoted(name)} is there twice")
        return fields

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise ServiceError(code, f"{what} cannot be read as JSON: {error}.") from error
