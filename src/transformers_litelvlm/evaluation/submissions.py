"""Files for the sets whose masks are on a server: Refer-YouTube-VOS `valid`, MeViS `valid`, and a JSON of masks."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.data.samples import VideoSample
from transformers_litelvlm.utils.files import write_atomically


# Folder inside the archive that the server looks into.
ARCHIVE_FOLDERS = {"refer-youtube-vos": "Annotations/", "mevis": ""}
# A zip entry carries a date; a fixed one makes equal predictions equal files.
_DATE = (1980, 1, 1, 0, 0, 0)


class VideoSubmission:
    """The archive being written, see [`video_submission`]; `folder` is inside of it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, videos: Iterable[VideoSample]):
        self._archive = archive
        self._folder = folder
        self._expected = {
            (video.video_id, expression.expression_id): video.frame_names
            for video in videos
            for expression in video.expressions
        }
        self._written: set[tuple[str, str]] = set()

    def add(self, video_id: str, expression_id: str, masks: Iterable[np.ndarray]) -> None:
        """Write the masks of an expression, one PNG of 0 and 255 per frame.

        Args:
            masks: `(height, width)` booleans at the original size, for every frame in order.

        Raises:
            ValueError: an unknown or repeated expression, or another number of masks than frames.
        """
        key = (video_id, expression_id)
        if key not in self._expected or key in self._written:
            state = "was added before" if key in self._written else "is not in the split"
            raise ValueError(f"Expression {expression_id} of video {video_id} {state}.")
        # Only one frame is in memory at a time, so the number of masks shows at the end.
        try:
            for name, mask in zip(self._expected[key], masks, strict=True):
                if mask.dtype != bool:
                    raise ValueError(f"Masks must be boolean, got {mask.dtype}. Apply your threshold first.")
                encoded = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * 255).save(encoded, format="PNG")
                entry = zipfile.ZipInfo(f"{self._folder}{video_id}/{expression_id}/{name}.png", _DATE)
                self._archive.writestr(entry, encoded.getvalue())
        except ValueError as error:
            raise ValueError(f"Expression {expression_id} of video {video_id}: {error}") from error
        self._written.add(key)

    def require_complete(self) -> None:
        """Raises a `ValueError` that names an expression without masks, if there is one."""
        missing = [key for key in self._expected if key not in self._written]
        if missing:
            video, expression = missing[0]
            raise ValueError(
                f"{len(missing)} of {len(self._expected)} expressions have no masks, the first is {expression} of"
                f" video {video}. Add empty masks if nothing was found: a server rejects an incomplete file."
            )


@contextmanager
def video_submission(path: str | os.PathLike, name: str, videos: Sequence[VideoSample]) -> Iterator[VideoSubmission]:
    """Write the archive that the server of a video set scores: `<video>/<expression>/<frame>.png`.

    The file appears when the `with` block ends and every expression is in it, complete or not at all.

    Args:
        path: the `.zip` file; replaced if it exists.
        name: `"refer-youtube-vos"` or `"mevis"`, which want another folder on top.
        videos: all videos of the split.

    Yields:
        `add(video_id, expression_id, masks)`.

    Raises:
        ValueError: another name or ending; expressions without masks.
    """
    path = Path(path)
    if name not in ARCHIVE_FOLDERS:
        raise ValueError(
            f"`name` must be one of {', '.join(ARCHIVE_FOLDERS)}, got {name!r}: no other set has a server."
        )
    if path.suffix != ".zip":
        raise ValueError(f"`path` must end in .zip, got {path}.")
    with write_atomically(path.parent) as staging:
        # A PNG cannot be compressed further.
        with zipfile.ZipFile(staging / path.name, "w", zipfile.ZIP_STORED) as archive:
            submission = VideoSubmission(archive, ARCHIVE_FOLDERS[name], videos)
            yield submission
            submission.require_complete()


def write_masks_json(path: str | os.PathLike, masks: Iterable[tuple[str, str, np.ndarray]]) -> None:
    """Write predicted masks as COCO run-length encodings, to be kept or scored elsewhere; all or nothing.

    Args:
        path: the `.json` file; replaced if it exists.
        masks: image id, sentence id and `(height, width)` booleans.
    """
    path = Path(path)
    records = [
        {"image_id": image_id, "sentence_id": sentence_id, "segmentation": encode_mask(mask)}
        for image_id, sentence_id, mask in masks
    ]
    with write_atomically(path.parent) as staging:
        (staging / path.name).write_text(json.dumps(records), encoding="utf-8")
