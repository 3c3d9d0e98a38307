"""The protocol of Label Studio's ML backends: a label's name is a sentence, and its mask is painted with a brush."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from fastapi import FastAPI, Request
from huggingface_hub.utils import httpx
from pydantic import BaseModel
from starlette.responses import JSONResponse

from transformers_litelvlm.serving.brush import brush_rle
from transformers_litelvlm.serving.errors import ServiceError, invalid_input
from transformers_litelvlm.serving.pictures import FETCH_SECONDS, fetch, picture_from_text
from transformers_litelvlm.serving.requests import as_request, read_fields
from transformers_litelvlm.serving.segmenter import Answer, Job
from transformers_litelvlm.serving.service import Service
from transformers_litelvlm.utils.messages import quoted


PATHS = ("/setup", "/predict", "/webhook", "/versions")
# Where Label Studio has files of tasks: uploads and local files, and those that it hands through from a storage.
_FILES = ("/data/", "/storage-data/")


class _Task(BaseModel):
    id: int | str | None = None
    data: dict[str, Any]


class _Region(BaseModel):
    value: dict[str, Any] = {}


class _Context(BaseModel):
    result: list[_Region] = []


class _Params(BaseModel):
    context: _Context | None = None


class _Predict(BaseModel):
    """The body of /predict; what is not named here is not needed."""

    tasks: list[_Task]
    label_config: str
    params: _Params = _Params()


class Brush(NamedTuple):
    """The first `<BrushLabels>` of a labeling configuration."""

    name: str
    image: str  # name of the <Image> that it paints on
    field: str  # of a task's data, where the picture is
    labels: list[str]


class LabelStudio:
    """Where Label Studio is. Pictures are fetched from there, and from nowhere else unless addresses are allowed.

    Args:
        url: `http(s)://host[:port]`, with a path if it is served below one.
        api_key: a personal access token, or a legacy one, for the pictures. `None`: those are not fetched.

    Raises:
        ValueError: it is no such address, or the key could not stand in a header; the message does not show it.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"must be an address such as http://localhost:8080, got {quoted(url)}")
        self.url, self.api_key = url.rstrip("/"), (api_key or "").strip() or None  # of a file, with its line break
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("the key, LABEL_STUDIO_API_KEY, must be printable ASCII.")

    def address_of(self, picture: str) -> str | None:
        """The address of a file that Label Studio has; `None` for other pictures. Raises ServiceError for an address
        of Label Studio that is of no file of a task. The key is not for those."""
        with invalid_input():
            own, given = urlsplit(self.url), urlsplit(self.url + picture if picture.startswith("/") else picture)
        if (given.scheme, given.netloc) != (own.scheme, own.netloc):
            return None
        path = unquote(given.path)
        if not path.startswith(tuple(own.path + start for start in _FILES)) or {"..", "."} & set(path.split("/")):
            raise ServiceError("invalid", f"{quoted(picture)} is no file of a task: only {' and '.join(_FILES)} are.")
        return given.geturl()

    def headers(self) -> dict[str, str]:
        """The key, as Label Studio wants it: a personal access token is good for short-lived ones."""
        if self.api_key is None:
            raise ServiceError("invalid", "Start the server with LABEL_STUDIO_API_KEY, the key for uploaded pictures.")
        if self.api_key.count(".") != 2:
            return {"Authorization": f"Token {self.api_key}"}
        try:
            answer = httpx.post(
                f"{self.url}/api/token/refresh/", json={"refresh": self.api_key}, timeout=FETCH_SECONDS
            )
            return {"Authorization": f"Bearer {answer.raise_for_status().json()['access']}"}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise ServiceError("invalid", f"Label Studio does not take LABEL_STUDIO_API_KEY: {error}.") from error

    def read(self, picture: Any, allow_urls: bool, max_bytes: int) -> bytes:
        """The file of a picture of a task, as [`picture_from_text`] reads others. Raises ServiceError."""
        address = self.address_of(picture) if isinstance(picture, str) else None
        if address is None:
            return picture_from_text(picture, allow_urls, max_bytes)
        return fetch(address, max_bytes, self.headers())


def add_label_studio(app: FastAPI, service: Service, label_studio: LabelStudio) -> None:
    """Add the addresses that Label Studio asks."""
    version = version_of(service.segmenter.model)

    @app.post("/setup", include_in_schema=False)
    async def setup(request: Request) -> JSONResponse:
        with service.admitted(), _explained(request):  # a project without a brush is refused at once
            brush_of(str((await read_fields(request, service.limits)).get("schema")))
        return JSONResponse({"model_version": version})

    @app.get("/versions", include_in_schema=False)
    async def versions() -> JSONResponse:
        return JSONResponse({"versions": [version]})

    @app.post("/webhook", include_in_schema=False)
    async def webhook() -> JSONResponse:
        return JSONResponse({})  # nothing is trained

    @app.post("/predict", include_in_schema=False)
    async def predict(request: Request) -> JSONResponse:
        results = []
        with service.admitted(), _explained(request):
            fields = await read_fields(request, service.limits)
            with invalid_input():
                asked = _Predict.model_validate(fields)
            brush, sentence = brush_of(asked.label_config), sentence_of(asked.params.context)
            sentences = brush.labels if sentence is None else [sentence]
            for task in asked.tasks:
                job, answer = await _answer(task, brush.field, sentences, request, service, label_studio)
                results.append(prediction(job, answer, brush) | {"model_version": version})
        return JSONResponse({"results": results, "model_version": version})


def version_of(model: Any) -> str:
    """Model and setting in words. Label Studio asks again about a task if this is another one."""
    config, mask_model = model.config, getattr(model.mask_model, "name_or_path", "")
    pruning = config.pruning_config
    tokens = pruning.budget or (f"{pruning.retention_ratio:.3%}" if pruning.retention_ratio else "all")
    others = {name: getattr(pruning, name) for name in ("then", "token_order", "position_ids")}
    others |= pruning.method_options | {"mask_model": Path(mask_model).name, "dtype": model.dtype}
    options = [f"{name}={value}" for name, value in others.items() if value not in (None, "")]
    return " ".join([Path(config._name_or_path).name, pruning.method, f"{tokens} tokens", *options])


@contextmanager
def _explained(request: Request) -> Iterator[None]:
    """Label Studio shows the status of an error and not its message, so the log has it."""
    try:
        yield
    except ServiceError as error:
        request.scope["litelvlm"]["why"] = str(error)
        raise


async def _answer(
    task: _Task, field: str, sentences: list[str], request: Request, service: Service, label_studio: LabelStudio
) -> tuple[Job, Answer]:
    """The masks of a task."""
    limits = service.limits
    try:
        if field not in task.data:
            raise ServiceError("invalid", f"There is no {quoted(field)} in its data, which <Image> names.")
        picture = await asyncio.to_thread(
            label_studio.read, task.data[field], service.allow_urls, limits.max_request_bytes
        )
        asked = as_request({"image": picture, "sentences": sentences}, limits)
        return await service.answer(asked, request, request.scope["litelvlm"], {})
    except ServiceError as error:
        raise ServiceError(error.code, f"Task {task.id}: {error}", error.headers) from error


def brush_of(label_config: str) -> Brush:
    """What a labeling configuration says. Raises ServiceError if it is no XML, or has no labels for a brush, or no
    image for them."""
    try:
        root = ElementTree.fromstring(label_config)
    except (ElementTree.ParseError, ValueError) as error:
        raise ServiceError("invalid", f"The labeling configuration is no XML: {error}.") from error
    brush = next(root.iter("BrushLabels"), ElementTree.Element("none"))
    labels = [label.get("value", "") for label in brush.iter("Label")]
    fields = {image.get("name"): image.get("value", "").removeprefix("$") for image in root.iter("Image")}
    if not labels or not all(labels) or not fields.get(brush.get("toName")):
        raise ServiceError(
            "invalid",
            'The labeling configuration needs an <Image name="image" value="$image"/> and a <BrushLabels name="mask" '
            'toName="image"> with a <Label value="..."/> for each sentence.',
        )
    return Brush(brush.get("name", ""), brush.get("toName", ""), fields[brush.get("toName")], labels)


def sentence_of(context: _Context | None) -> str | None:
    """The newest text that an annotator typed into a smart `<TextArea>`; `None` if this is not why we are asked."""
    texts = [region.value["text"] for region in (context.result if context else []) if region.value.get("text")]
    newest = texts[-1] if texts else None
    return newest[-1] if isinstance(newest, list) else newest


def prediction(job: Job, answer: Answer, brush: Brush) -> dict[str, Any]:
    """The masks of a task that are not empty, as regions, with the mean of their scores. A sentence that is no label
    has the first label."""
    found = [each for each in zip(brush.labels, answer.masks, answer.scores) if each[1].any()]
    width, height = job.size
    regions = [
        {
            "id": uuid.uuid4().hex[:8],
            "type": "brushlabels",
            "from_name": brush.name,
            "to_name": brush.image,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {"format": "rle", "rle": brush_rle(mask), "brushlabels": [label]},
        }
        for label, mask, score in found
    ]
    return {"result": regions, "score": sum(score for _, _, score in found) / max(len(found), 1)}
