"""What UniPixel was asked, and how it prepares pictures and videos for Qwen2.5-VL and for SAM 2.

Words of the checkpoints' authors, as facts of the checkpoints: other words give other token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from transformers_litelvlm.models.upstream import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, smart_resize


SYSTEM_PROMPT = "You are a helpful assistant."
SEG_TOKEN = "<|seg|>"

# First the one for referring expressions, then those for whole sentences, questions and descriptions. {medium} is
# "image" or "video".
QUESTION_TEMPLATES = (
    "Please segment the {expression} in this {medium}.",
    "{expression} Please provide the segmentation mask.",
    "{expression} Please answer the question and provide the segmentation mask.",
    "Please segment the object according to the description: {expression}",
)
ANSWER_TEMPLATES = (
    "The target is <|seg|>.",
    "The segmentation result is <|seg|>.",
    "Sure, the segmentation mask is <|seg|>.",
    "Sure, it is <|seg|>.",
    "<|seg|>.",
)

# Of a video, the language model sees this many frames, SAM 2 all of them.
NUM_FRAMES = 16
# The rate that time positions are computed with, whatever the video's own is.
FRAMES_PER_SECOND = 2.0
_MIN_TOKENS, _MAX_TOKENS = 128, 256


def normalize_expression(expression: str) -> str:
    """A referring expression as UniPixel writes it into a question: "The red mug." -> "red mug".

    Full stops at the ends go, the first letter becomes small, and one leading article goes.
    """
    expression = expression.strip().strip(".").strip()
    expression = expression[:1].lower() + expression[1:]
    for article in ("the ", "an ", "a "):
        if expression.startswith(article):
            return expression[len(article) :].strip()
    return expression


def sample_frames(num_frames: int) -> list[int]:
    """Indices of the frames for the language model: all of up to 16, else 16 at equal distances, both ends included.

    The published description says "uniformly"; the rounding to whole frames is ours.
    """
    if num_frames <= NUM_FRAMES:
        return list(range(num_frames))
    return np.linspace(0, num_frames - 1, NUM_FRAMES).round().astype(int).tolist()


def resized_size(height: int, width: int, num_frames: int, factor: int = 28) -> tuple[int, int]:
    """(height, width) for the language model: multiples of `factor`, the side of a visual token, and per frame at
    least 128 and at most 256 * (16 // num_frames) tokens. A picture is one frame.

    Raises:
        ValueError: for a side more than 200 times the other.
    """
    return smart_resize(
        height,
        width,
        factor=factor,
        min_pixels=_MIN_TOKENS * factor**2,
        max_pixels=_MAX_TOKENS * factor**2 * (NUM_FRAMES // num_frames),
    )


def resize_frames(frames: Sequence[Image.Image], factor: int = 28) -> list[Image.Image]:
    """RGB frames for the language model (PIL, bicubic), all of the size that the first one gets."""
    width, height = frames[0].size
    height, width = resized_size(height, width, len(frames), factor)
    return [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]


def frames_for_masks(frames: Sequence[Image.Image], side: int) -> torch.Tensor:
    """(F, 3, side, side) float32 for SAM 2: stretched to a square as floats, bilinear with antialiasing, ImageNet mean
    and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    resized = [
        torch.nn.functional.interpolate(
            torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255,
            (side, side),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        for frame in frames
    ]
    return (torch.cat(resized) - mean) / std
