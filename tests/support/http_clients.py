"""Requests to the HTTP service, in this process, and what a model says without it."""

from __future__ import annotations

import base64
import io
import json
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from huggingface_hub.utils import httpx
from PIL import Image

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.requests import SETTINGS


def png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def as_text(picture: Image.Image) -> str:
    """A picture in base64."""
    return base64.b64encode(png(picture)).decode()


def form(picture: Image.Image, sentences: list[str], **settings: Any) -> dict[str, Any]:
    """Keywords of a request with a form."""
    given = {name: json.dumps(v) if not isinstance(v, str) else v for name, v in settings.items()}
    return {"files": {"image": ("a.png", png(picture))}, "data": {"sentences": sentences, **given}}


@asynccontextmanager
async def client_of(service: Any, token: str | None = None):
    """A client of an application that runs in this process."""
    transport = httpx.ASGITransport(create_app(service, token), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=120) as client:
        yield client


def masks_of(answer: dict[str, Any]) -> np.ndarray:
    """(T, H, W) of the body of an answer."""
    return np.stack([decode_mask(each["mask"]) for each in answer["masks"]])


def alone(model: Any, processor: Any, picture: Image.Image, sentences: list[str], settings: dict[str, Any]) -> Any:
    """What the model says to one request, without the service."""
    keywords = {SETTINGS[name]: value for name, value in settings.items()}
    inputs = processor.segmentation_inputs([picture], [sentences])
    return model.segment(**inputs, pruning_config=change_pruning(model.config.pruning_config, keywords))
