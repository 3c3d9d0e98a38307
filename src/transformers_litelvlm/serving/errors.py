"""Errors that a client sees: a status, a code that programs read, and a message for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers_litelvlm.models.outputs import NotFiniteError


# Every code of an answer that is no success, with its HTTP status and what it means; /docs shows this table.
CODES = {
    "bad_request": (400, "The body is no JSON object or no form."),
    "unauthorized": (401, "The bearer token is missing or wrong."),
    "not_found": (404, "There is no such address."),
    "method_not_allowed": (405, "The address does not know this HTTP method."),
    "timeout": (408, "The body did not arrive in time."),
    "too_large": (413, "The body is larger than the server accepts."),
    "unsupported_media_type": (415, "The body is neither JSON nor a form."),
    "invalid": (422, "The image, a sentence or a pruning setting is refused."),
    "queue_full": (429, "As many requests as the server accepts are waiting. Try again later."),
    "internal": (500, "A fault of the server."),
    "stopping": (503, "The server is stopping."),
}


class ServiceError(Exception):
    """What is answered instead of masks: a code of [`CODES`], what is wrong and what to do, and headers of the
    answer."""

    def __init__(self, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.status, self.headers = code, CODES[code][0], headers or {}

    def as_json(self) -> dict[str, Any]:
        """`{"error": {"code", "message"}}`."""
        return {"error": {"code": self.code, "message": " ".join(str(self).split())}}


@contextmanager
def invalid_input() -> Iterator[None]:
    """Turns the `ValueError`s of the package, which say what is wrong with an input, into answers.

    A method that is not defined for a model raises `NotImplementedError`. What is not finite is the fault of
    the weights: a picture of a file has finite pixels.
    """
    try:
        yield
    except NotFiniteError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise ServiceError("invalid", str(error)) from error
