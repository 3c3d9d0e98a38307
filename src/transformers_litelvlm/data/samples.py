"""What every reader gives: an image with its sentences, or a video with its expressions. Pixels are read on demand."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from transformers_litelvlm.utils.image_io import is_url, load_rgb_image, open_picture
from transformers_litelvlm.utils.messages import quoted, shortened


class UnreadableImageError(ValueError):
    """A picture that is missing or damaged.

    Args:
        name: the image, or the video and frame, that it belongs to.
        reason: what is wrong, with the path.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"The picture of {shortened(name)} cannot be read: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)


@dataclass(frozen=True, eq=False)
class ReferringSentence:
    """One sentence about an image, and the pixels it means.

    Args:
        sentence_id: unique in its split, and the same in every run.
        sentence: the wording.
        load_mask: makes the mask, see `mask`.
        load_ignore: makes the ignore region, see `ignore`.
        object_id: the object meant; sentences about the same object share it.
        details: what else the source says, under its own names (`is_sentence`, `kind`, `category`).
    """

    sentence_id: str
    sentence: str
    load_mask: Callable[[], np.ndarray] = field(repr=False)
    load_ignore: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    object_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text(self.sentence)

    @property
    def mask(self) -> np.ndarray:
        """`(height, width)` booleans, all false if nothing is meant. Decoded at every access."""
        return self.load_mask()

    @property
    def ignore(self) -> np.ndarray | None:
        """`(height, width)` booleans of pixels that must not count, or `None`. Decoded at every access."""
        return None if self.load_ignore is None else self.load_ignore()


@dataclass(frozen=True, eq=False)
class ImageSample:
    """An image with all its sentences, so that it is encoded once.

    Args:
        image_id: unique in its split.
        image: where the picture is; a dict holds `bytes` or `path`, as `datasets` stores pictures.
        sentences: at least one, in the order of the source.
        allow_urls: fetch the picture if it is an address.
    """

    image_id: str
    image: Any = field(repr=False)
    sentences: tuple[ReferringSentence, ...]
    allow_urls: bool = False

    def __post_init__(self) -> None:
        if not self.sentences:
            raise ValueError(f"image {shortened(self.image_id)} has no sentence")

    def load_image(self) -> Image.Image:
        """The picture, upright and in RGB.

        Raises:
            UnreadableImageError: it is missing or damaged; names the image and the file.
        """
        return read_picture(self.image, f"image {self.image_id}", self.allow_urls)


@dataclass(frozen=True, eq=False)
class VideoExpression:
    """One expression about a video, and the pixels it means in every frame.

    Args:
        expression_id: unique in its video.
        sentence: the wording.
        object_ids: the objects meant, empty if the source hides them.
        load_mask: the mask of a frame, given its number; `None` if the masks are not public.
    """

    expression_id: str
    sentence: str
    object_ids: tuple[str, ...] = ()
    load_mask: Callable[[int], np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_text(self.sentence)

    def mask(self, frame: int) -> np.ndarray:
        """Union of the objects' masks in a frame, by its number in `VideoSample.frame_names`: `(height, width)`
        booleans.

        Raises:
            ValueError: the masks of this split are not public.
        """
        if self.load_mask is None:
            raise ValueError(
                f"Expression {self.expression_id} has no masks: they are not public for this split. Write a submission"
                " with `transformers_litelvlm.evaluation.submissions` instead."
            )
        return self.load_mask(frame)


@dataclass(frozen=True, eq=False)
class VideoSample:
    """A video with all its expressions.

    Args:
        video_id: unique in its split.
        frame_names: names of the frames in order, without ending.
        frame_paths: their files.
        expressions: at least one, in the order of the source.
        load_objects: the annotated object numbers of a frame, `(height, width)` uint8, 0 for background and 255 for
            void. Only if the source has such pictures.
    """

    video_id: str
    frame_names: tuple[str, ...] = field(repr=False)
    frame_paths: tuple[str, ...] = field(repr=False)
    expressions: tuple[VideoExpression, ...]
    load_objects: Callable[[int], np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, parts in (("expression", self.expressions), ("frame", self.frame_names)):
            if not parts:
                raise ValueError(f"video {self.video_id} has no {name}")

    def load_frame(self, frame: int) -> Image.Image:
        """A frame in RGB, by its number.

        Raises:
            UnreadableImageError: it is missing or damaged; names the video, the frame and the file.
        """
        return read_picture(self.frame_paths[frame], f"video {self.video_id}, frame {self.frame_names[frame]}")


def _check_text(sentence: Any) -> None:
    if not isinstance(sentence, str):
        raise ValueError(f"a sentence must be a text, got {quoted(sentence)}")


def encoded(content: Any) -> io.BytesIO:
    """The `bytes` of a picture in a row as a file. Raises ValueError if they are none."""
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ValueError(f"`bytes` of a picture must be bytes, got {quoted(content)}.")
    return io.BytesIO(content)


def read_picture(source: Any, name: str, allow_urls: bool = False) -> Image.Image:
    """A picture from wherever it is, upright and in RGB.

    Args:
        source: a path, a picture, an array, or a dict with `bytes` or `path`.
        name: what to call it in an error.
        allow_urls: fetch it if the path is an address; data of strangers must not decide what this machine asks for.

    Raises:
        UnreadableImageError: it is missing or damaged, or an address.
    """
    try:
        if isinstance(source, Mapping):
            if source.get("bytes") is not None:
                return load_rgb_image(open_picture(encoded(source["bytes"]), name))
            source = source.get("path")
        if isinstance(source, str) and is_url(source) and not allow_urls:
            raise ValueError(
                f"`image` {source:.80} is an address, and none is fetched for a row of data unless you ask for it: "
                '`load_split("rows", ..., allow_urls=True)`, or download the pictures first.'
            )
        if isinstance(source, str | os.PathLike | Image.Image | np.ndarray):
            return load_rgb_image(source)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(name, str(error)) from error
    raise UnreadableImageError(name, f"neither a path nor a picture, but {type(source).__name__}")
