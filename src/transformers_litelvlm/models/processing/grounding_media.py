"""How checkpoints that write masks see pictures and videos: as settings, and what follows them.

Two checkpoints of one family differ in how many frames of a video the language model sees, what a frame is for it, and
how frames are resized, for it and for the mask decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_litelvlm.models.upstream import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, smart_resize
from transformers_litelvlm.utils.messages import did_you_mean, quoted


# The rate that time positions are computed with, whatever the video's own is.
FRAMES_PER_SECOND = 2.0

# Field -> what it may be.
_CHOICES: dict[str, tuple] = {
    "pictures_as": ("image", "video"),
    "frames": ("spread", "first"),
    "mask_resampling": ("bilinear", "bicubic"),
}


@dataclass(frozen=True)
class GroundingMedia:
    """How pictures and videos are prepared. The defaults are UniPixel's.

    Args:
        pictures_as: what a picture is for the language model: `"video"`, a video of one frame, or `"image"`; with the
            latter, frames of a video are images, too. The model's `grounding_config` has the same.
        num_frames: frames of a video that the language model sees at most.
        frames: which: `"spread"` at equal distances, or the `"first"`.
        system_prompt: of every dialogue; `None` leaves it to the chat template.
        tokens: visual tokens of a frame of a video of `num_frames` frames, at least and at most; a shorter video gets
            as many more for each. Of `"video"` only.
        first_resize: multiples of what, and how many pixels at least and at most, pictures are resized to before the
            image processor resizes them. Of `"image"` only.
        video_question: asked about a video if no other question is given; `None` is the question about a picture.
        mask_resampling: how frames become the mask decoder's square: `"bilinear"`, as floats with antialiasing,
            normalised as ImageNet is; or `"bicubic"`, as `uint8` that the model normalises.

    Raises:
        ValueError: for a setting that does not exist, or a value that it does not have.
    """

    pictures_as: str = "video"
    num_frames: int = 16
    frames: str = "spread"
    system_prompt: str | None = None
    tokens: tuple[int, int] = (128, 256)
    first_resize: tuple[int, int, int] = (28, 56 * 56, 14 * 14 * 4 * 16384)
    video_question: str | None = None
    mask_resampling: str = "bilinear"

    @classmethod
    def of(cls, settings: dict[str, Any]) -> GroundingMedia:
        """From a processor's `grounding_media`."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(
                f"`grounding_media` has the unknown settings {quoted(unknown)}.{did_you_mean(unknown, known)} There "
                f"are: {', '.join(known)}."
            )
        for name, allowed in _CHOICES.items():
            if name in settings and settings[name] not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ValueError(f"`grounding_media.{name}` must be one of {choices}, got {quoted(settings[name])}.")
        for name, count in {"num_frames": 1, "tokens": 2, "first_resize": 3}.items():
            values = np.atleast_1d(settings.get(name, [1] * count)).tolist()
            if len(values) != count or any(type(value) is not int or value < 1 for value in values):
                raise ValueError(
                    f"`grounding_media.{name}` must have {count} whole numbers above 0, got {quoted(settings[name])}."
                )
        return cls(**settings)

    def seen(self, num_frames: int) -> list[int]:
        """Indices of the frames that the language model sees.

        UniPixel's published description says "uniformly"; the rounding to whole frames is ours.
        """
        if num_frames <= self.num_frames or self.frames == "first":
            return list(range(min(num_frames, self.num_frames)))
        return np.linspace(0, num_frames - 1, self.num_frames).round().astype(int).tolist()

    def size_in_video(self, height: int, width: int, num_frames: int, factor: int) -> tuple[int, int]:
        """(height, width) of the frames of a video for the language model: multiples of `factor`, the side of a visual
        token. A picture is one frame.

        Raises:
            ValueError: for a side more than 200 times the other.
        """
        least, most = self.tokens
        return smart_resize(
            height,
            width,
            factor=factor,
            min_pixels=least * factor**2,
            max_pixels=most * factor**2 * (self.num_frames // num_frames),
        )

    def resize_video(self, frames: Sequence[Image.Image], factor: int) -> list[Image.Image]:
        """RGB frames for the language model (PIL, bicubic), all of the size that the first one gets."""
        width, height = frames[0].size
        height, width = self.size_in_video(height, width, len(frames), factor)
        return [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]

    def resize_image(self, picture: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
        """An RGB picture for the language model, resized twice: as `first_resize` says, by PIL; then to multiples of
        `factor` within the limits, by torch as torchvision does it. PIL alone differs by up to two levels of 255.

        Raises:
            ValueError: for a side more than 200 times the other.
        """
        first_factor, *limits = self.first_resize
        height, width = smart_resize(picture.height, picture.width, first_factor, *limits)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        size = smart_resize(height, width, factor, min_pixels, max_pixels)
        if size == (height, width):
            return picture
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        values = torch.nn.functional.interpolate(values, size, mode="bicubic", align_corners=False, antialias=True)
        return Image.fromarray(values[0].permute(1, 2, 0).numpy())

    def for_masks(self, frames: Sequence[Image.Image], side: int) -> torch.Tensor:
        """(F, 3, side, side) for the mask decoder, stretched to a square: float32 or, with `"bicubic"`, `uint8`."""
        is_whole = self.mask_resampling == "bicubic"
        # Filled frame by frame: a list of frames, put together, would be all of a long video twice.
        squares = torch.empty(len(frames), 3, side, side, dtype=torch.uint8 if is_whole else torch.float32)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        for square, frame in zip(squares, frames, strict=True):
            if is_whole:
                resized = np.array(frame.resize((side, side), Image.Resampling.BICUBIC))
                square.copy_(torch.from_numpy(resized).permute(2, 0, 1))
                continue
            values = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
            values = torch.nn.functional.interpolate(
                values, (side, side), mode="bilinear", align_corners=False, antialias=True
            )
            square.copy_((values[0] - mean) / std)
        return squares
