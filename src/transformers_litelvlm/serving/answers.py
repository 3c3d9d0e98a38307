"""What is answered: masks as run lengths of COCO, with what belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from transformers_litelvlm.data.masks import box_around, encode_mask
from transformers_litelvlm.serving.errors import CODES
from transformers_litelvlm.serving.segmenter import Answer, Job


class RunLengths(BaseModel):
    """A mask as COCO has it; `pycocotools.mask.decode` reads it."""

    size: list[int] = Field(description="height and width of the image")
    counts: str = Field(description="compressed run lengths, column by column")


class SentenceMask(BaseModel):
    """The mask of one sentence."""

    sentence: str
    mask: RunLengths
    score: float = Field(description="mean probability inside the mask, 0 for an empty one; not correctness")
    box: list[int] | None = Field(description="left, top, right, bottom in pixels, the last two excluded; or null")
    area: int = Field(description="pixels inside the mask")
    answer: str | None = Field(
        None, description="what a model that answers in text wrote; else absent, as the next two"
    )
    boxes: list[list[float]] | None = Field(None, description="the boxes in it, as `box`")
    says_none: bool | None = Field(None, description="whether it says that there is no such object")


class SegmentAnswer(BaseModel):
    """The masks of all sentences of a request."""

    id: str = Field(description="of the request; also in the log")
    width: int
    height: int
    masks: list[SentenceMask]
    method: str | None = Field(description="the pruning method; null if nothing was pruned")
    then: dict[str, Any] | None = Field(None, description="the settings of a second method, if there is one")
    token_grid: list[int] = Field(description="rows and columns of the visual tokens before pruning, tile below tile")
    num_visual_tokens: int
    retained_indices: list[list[int]] = Field(description="kept tokens of each dialogue, counted row by row from 0")
    batch_size: int = Field(description="requests that shared the call of the model")
    cached: bool = Field(description="whether the image was encoded before")
    timings_ms: dict[str, float] = Field(description="read, prepare, queue, encode, model, write, total")


class ErrorBody(BaseModel):
    """What is wrong."""

    code: str = Field(description=", ".join(CODES))
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorBody


def describe(job: Job, answer: Answer) -> dict[str, Any]:
    """What [`SegmentAnswer`] holds, without `id` and `timings_ms`."""
    total = job.grid[0] * job.grid[1]
    texts = [{}] * len(job.sentences) if answer.texts is None else [text.as_json() for text in answer.texts]
    is_pruned = any(len(kept) != total for kept in answer.kept)
    return {
        "width": job.size[0],
        "height": job.size[1],
        "masks": [
            {"sentence": sentence, **describe_mask(mask, score), **text}
            for sentence, mask, score, text in zip(job.sentences, answer.masks, answer.scores, texts, strict=True)
        ],
        "method": job.pruning.method if is_pruned else None,
        **({"then": job.pruning.then} if is_pruned and job.pruning.then else {}),
        "token_grid": list(job.grid),
        "num_visual_tokens": total,
        "retained_indices": answer.kept,
        "batch_size": answer.batch_size,
        "cached": answer.was_known,
    }


def describe_mask(mask: np.ndarray, score: float) -> dict[str, Any]:
    """What [`SentenceMask`] holds of a mask (H, W), without `sentence`."""
    box = box_around(mask)
    return {
        "mask": encode_mask(mask),
        "score": score,
        "box": None if box is None else list(box),
        "area": int(mask.sum()),
    }
