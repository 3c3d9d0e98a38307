"""The HTTP service as an ASGI application: addresses, documentation, bearer token, log."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from transformers_litelvlm.serving.answers import ErrorAnswer, SegmentAnswer
from transformers_litelvlm.serving.errors import CODES, ServiceError
from transformers_litelvlm.serving.label_studio import PATHS as LABEL_STUDIO_PATHS
from transformers_litelvlm.serving.label_studio import LabelStudio, add_label_studio
from transformers_litelvlm.serving.requests import LONGEST_SENTENCE, SETTINGS
from transformers_litelvlm.serving.segmenter import milliseconds_since
from transformers_litelvlm.serving.service import Service
from transformers_litelvlm.version import __version__


logger = logging.getLogger(__name__)

# Who went away gets no answer; the log and the metrics call it this, as nginx does.
CLIENT_GONE = 499
_OF_SEGMENT = (400, 401, 408, 413, 415, 422, 429, 500, 503)
_OPEN = ("/health", "/docs", "/openapi.json")


def create_app(service: Service, token: str | None = None, label_studio: LabelStudio | None = None) -> FastAPI:
    """The application.

    Args:
        token: that clients must send as `Authorization: Bearer ...`, except to /health and the documentation. The
            password of `Basic` with the user "litelvlm" is the same: Label Studio knows no bearer tokens.
        label_studio: that may ask for predictions, if any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        service.close()

    app = FastAPI(
        title="litelvlm serve",
        version=__version__,
        description="Masks for sentences about images, on a fraction of the visual tokens.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(_Outside, service=service, token=token)
    app.add_exception_handler(HTTPException, _http_error)

    @app.post(
        "/v1/segment",
        response_model=SegmentAnswer,
        responses=_documented(*_OF_SEGMENT),
        openapi_extra={"requestBody": _request_body()},
        summary="Masks for sentences about an image",
    )
    async def segment(request: Request) -> Response:
        facts = request.scope["litelvlm"]
        answer = await service.segment(request, facts)
        return json_response(200, {"id": facts["id"], **answer})

    @app.get("/health", summary="Whether the server answers", responses=_documented(500, 503))
    async def health() -> dict[str, Any]:
        service.check_health()
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", summary="Counters for Prometheus", responses=_documented(401), response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if label_studio is not None:
        add_label_studio(app, service, label_studio)
    return app


class _Outside:
    """Around everything else: an id, the token, errors as JSON, a line in the log, counters."""

    def __init__(self, app: Any, service: Service, token: str | None) -> None:
        self.app, self.service, self.token = app, service, token

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts = scope["litelvlm"] = {"id": uuid.uuid4().hex, "status": None}
        start = time.perf_counter()

        async def send_and_note(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", facts["id"].encode())]
            await send(message)

        try:
            self._check_token(scope)
            await self.app(scope, receive, send_and_note)
        except ClientDisconnect:
            facts["status"] = CLIENT_GONE
        except Exception as error:
            await self._answer_error(error, scope, receive, send_and_note)
        finally:
            self._note(scope, facts, start)

    def _check_token(self, scope: dict[str, Any]) -> None:
        if self.token is None or scope["path"] in _OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        basic = base64.b64encode(f"litelvlm:{self.token}".encode())
        if not any(hmac.compare_digest(given, own) for own in (b"Bearer " + self.token.encode(), b"Basic " + basic)):
            raise ServiceError("unauthorized", "Send the token of this server.", {"WWW-Authenticate": "Bearer"})

    async def _answer_error(self, error: Exception, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", scope["litelvlm"]["id"], exc_info=error)
            error = ServiceError("internal", "A fault of the server; its log has this request's id.")
        if scope["litelvlm"]["status"] is not None:
            return  # in the middle of an answer
        await json_response(error.status, error.as_json(), error.headers)(scope, receive, send)

    def _note(self, scope: dict[str, Any], facts: dict[str, Any], start: float) -> None:
        path = scope["path"] if scope["path"] in (*_OPEN, "/v1/segment", "/metrics", *LABEL_STUDIO_PATHS) else "other"
        self.service.metrics.requests.labels(path, str(facts["status"])).inc()
        logger.info(json.dumps({"path": path, **facts, "ms": round(milliseconds_since(start), 3)}))


async def _http_error(request: Request, error: Any) -> Response:
    """Of the router: an address or a method that does not exist."""
    code = next((code for code, (known, _) in CODES.items() if known == error.status_code), "internal")
    own = ServiceError(code, CODES[code][1])
    return json_response(own.status, own.as_json(), error.headers)


def json_response(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: a message may quote half of a surrogate pair, which UTF-8 does not have."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of FastAPI for errors."""
    return {
        status: {"model": ErrorAnswer, "description": f"`{code}`: {text}"}
        for code, (status, text) in CODES.items()
        if status in statuses
    }


def _request_body() -> dict[str, Any]:
    """Both kinds of bodies, for OpenAPI."""
    sentence: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST_SENTENCE}
    sentences = {"type": "array", "items": sentence, "minItems": 1, "description": "what to find"}
    settings: dict[str, Any] = {
        "preset": {"type": "string"},
        "method": {"type": "string"},
        "budget": {"type": ["integer", "null"], "minimum": 1, "description": "visual tokens to keep; null: all"},
        "retention_ratio": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "fraction of the visual tokens KEPT",
        },
        "method_options": {"type": "object"},
        "then": {"type": "object"},
        "token_order": {"type": "string", "enum": ["raster", "reference"]},
        "position_ids": {"type": "string", "enum": ["original", "compact"]},
    }
    assert settings.keys() == SETTINGS.keys()

    def body(image: dict[str, Any]) -> dict[str, Any]:
        properties = {"image": image, "sentences": sentences, **settings}
        return {"schema": {"type": "object", "required": ["image", "sentences"], "properties": properties}}

    return {
        "required": True,
        "content": {
            "multipart/form-data": body({"type": "string", "format": "binary"}),
            "application/json": body(
                {"type": "string", "minLength": 1, "description": "base64, or a data:image/... address"}
            ),
        },
    }
