"""Refer-YouTube-VOS, and Ref-DAVIS17 converted to its layout, as everybody has it."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_litelvlm.data.samples import UnreadableImageError, VideoExpression, VideoSample
from transformers_litelvlm.utils.image_io import open_picture


NUM_ANNOTATORS = 4
NO_MASKS_NOTE = "no masks here: this split can be predicted, not scored"


def open_referring_video(
    name: str, root: str | os.PathLike, split: str, annotation_root: str | os.PathLike | None = None
) -> tuple[list, Any, tuple[str, ...]]:
    """Rows and reader of a folder with `meta_expressions/<split>/meta_expressions.json` and `<split>/JPEGImages`.

    If `meta_expressions/test` exists, its videos are left out of `valid`, whose file lists both.

    Args:
        annotation_root: folder with `<video>/<frame>.png`, pictures whose values are object numbers. Defaults to
            `<split>/Annotations`; without it, expressions have no masks.
    """
    root = Path(root)
    videos = read_expressions(root / "meta_expressions" / split / "meta_expressions.json")
    hidden = root / "meta_expressions" / "test" / "meta_expressions.json"
    if split == "valid" and hidden.exists():
        tested = read_expressions(hidden)
        videos = {video: record for video, record in videos.items() if video not in tested}
    annotations: Path | None = root / split / "Annotations" if annotation_root is None else Path(annotation_root)
    if not annotations.is_dir():
        if annotation_root is not None:
            raise FileNotFoundError(f"`annotation_root` {annotations} does not exist.")
        annotations = None
    read = partial(_read_video, root / split / "JPEGImages", annotations)
    return sorted(videos.items()), read, (NO_MASKS_NOTE,) if annotations is None else ()


def read_expressions(path: Path) -> dict[str, dict]:
    """The videos of a `meta_expressions.json`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["videos"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist. Check `source` and `split`.") from None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a readable list of expressions: {error!r}") from error


def frame_paths(folder: Path, video: str, record: dict) -> tuple[str, ...]:
    """The files of a video's frames."""
    return tuple(str(folder / video / f"{frame}.jpg") for frame in record["frames"])


def _read_video(pictures: Path, annotations: Path | None, index: int, row: tuple[str, dict]) -> VideoSample:
    video, record = row
    load_objects = None if annotations is None else partial(_load_objects, annotations / video, record["frames"])
    expressions = []
    for number, entry in record["expressions"].items():
        if load_objects is None:
            expressions.append(VideoExpression(number, entry["exp"]))
            continue
        # Some conversions of Ref-DAVIS17 leave the object out: four annotators in a row describe each.
        item = str(entry.get("obj_id", int(number) // NUM_ANNOTATORS + 1))
        load_mask = partial(_load_mask, load_objects, int(item))
        expressions.append(VideoExpression(number, entry["exp"], (item,), load_mask))
    paths = frame_paths(pictures, video, record)
    return VideoSample(video, tuple(record["frames"]), paths, tuple(expressions), load_objects)


def _load_objects(folder: Path, frames: list[str], frame: int) -> np.ndarray:
    path = folder / f"{frames[frame]}.png"
    try:
        with open_picture(path, path) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(f"{path} has mode {picture.mode}, object numbers need one channel")
            return np.array(picture)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"the objects of video {folder.name}, frame {frames[frame]}", str(error)) from error


def _load_mask(load_objects: Any, number: int, frame: int) -> np.ndarray:
    return load_objects(frame) == number


def annotators(video: VideoSample) -> list[dict[str, VideoExpression]]:
    """The expressions of a Ref-DAVIS17 video by annotator: four who each described every object once.

    Args:
        video: expression number `4 * object + annotator` belongs to that annotator, as in every published conversion.

    Returns:
        Per annotator, object to expression.

    Raises:
        ValueError: the expressions are not four per object.
    """
    ordered = sorted(video.expressions, key=lambda expression: int(expression.expression_id))
    groups = [
        {expression.object_ids[0]: expression for expression in ordered[annotator::NUM_ANNOTATORS]}
        for annotator in range(NUM_ANNOTATORS)
    ]
    if not ordered or any(len(group) * NUM_ANNOTATORS != len(ordered) for group in groups):
        raise ValueError(
            f"Video {video.video_id} has {len(ordered)} expressions that are not four per object in a row: it is not"
            " Ref-DAVIS17. Score it per expression."
        )
    return groups
