"""Videos: Refer-YouTube-VOS, Ref-DAVIS17 converted to its layout, as everybody has it, and MeViS."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.samples import UnreadableImageError, VideoExpression, VideoSample, read_picture
from transformers_litelvlm.utils.files import read_json
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
    videos = _read_videos(root / "meta_expressions" / split / "meta_expressions.json")
    hidden = root / "meta_expressions" / "test" / "meta_expressions.json"
    if split == "valid" and hidden.exists():
        tested = _read_videos(hidden)
        videos = {video: record for video, record in videos.items() if video not in tested}
    annotations: Path | None = root / split / "Annotations" if annotation_root is None else Path(annotation_root)
    if not annotations.is_dir():
        if annotation_root is not None:
            raise FileNotFoundError(f"`annotation_root` {annotations} does not exist.")
        annotations = None
    read = partial(_read_video, root / split / "JPEGImages", annotations, name == "ref-davis17")
    return sorted(videos.items()), read, (NO_MASKS_NOTE,) if annotations is None else ()


def open_mevis(name: str, root: str | os.PathLike, split: str) -> tuple[list, Any, tuple[str, ...]]:
    """Rows and reader of a folder with `<split>/{JPEGImages,meta_expressions.json,mask_dict.json}`.

    The folder may be inside of `mevis`. `"valid_u"` is scored here, `"valid"` has no masks.
    """
    folder = Path(root, "mevis", split)
    folder = folder if folder.is_dir() else Path(root, split)
    videos = _read_videos(folder / "meta_expressions.json")
    path = folder / "mask_dict.json"
    masks = read_json(path) if path.exists() else None
    notes = (NO_MASKS_NOTE,) if masks is None else ()
    return sorted(videos.items()), partial(_read_mevis_video, folder / "JPEGImages", masks), notes


def _read_videos(path: Path) -> dict[str, dict]:
    """The videos of a `meta_expressions.json`."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Check `source` and `split`.")
    content = read_json(path)
    if "videos" not in content:
        raise ValueError(f"{path} is not a list of expressions: it has no `videos`.")
    return content["videos"]


def _paths(pictures: Path, row: tuple[str, dict]) -> tuple[str, ...]:
    return tuple(str(pictures / row[0] / f"{frame}.jpg") for frame in row[1]["frames"])


def _sample(pictures: Path, row: tuple[str, dict], expressions: list[VideoExpression], objects: Any) -> VideoSample:
    return VideoSample(row[0], tuple(row[1]["frames"]), _paths(pictures, row), tuple(expressions), objects)


def _read_video(
    pictures: Path, annotations: Path | None, is_davis: bool, index: int, row: tuple[str, dict]
) -> VideoSample:
    video, record = row
    load_objects = None if annotations is None else partial(_load_objects, annotations / video, record["frames"])
    expressions = []
    for number, entry in record["expressions"].items():
        if load_objects is None:
            expressions.append(VideoExpression(number, entry["exp"]))
            continue
        # Some conversions of Ref-DAVIS17 leave the object out: four annotators in a row describe each.
        item = str(int(number) // NUM_ANNOTATORS + 1 if is_davis and "obj_id" not in entry else entry["obj_id"])
        load_mask = partial(_load_mask, load_objects, int(item))
        expressions.append(VideoExpression(number, entry["exp"], (item,), load_mask))
    return _sample(pictures, row, expressions, load_objects)


def _read_mevis_video(pictures: Path, masks: dict | None, index: int, row: tuple[str, dict]) -> VideoSample:
    video, record = row
    paths = _paths(pictures, row)
    expressions = []
    for number, entry in record["expressions"].items():
        load_mask = None
        if masks is not None:
            tracks = [masks[str(track)] for track in entry["anno_id"]]
            if any(len(track) < len(record["frames"]) for track in tracks):
                raise ValueError(f"expression {number} of video {video} has masks of fewer frames than the video")
            load_mask = partial(_union, tracks, paths)
        objects = tuple(map(str, entry.get("obj_id", ())))
        expressions.append(VideoExpression(number, entry["exp"], objects, load_mask))
    return _sample(pictures, row, expressions, None)


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


def _union(tracks: list[list], paths: tuple[str, ...], frame: int) -> np.ndarray:
    present = [decode_mask(track[frame]) for track in tracks if track[frame] is not None]
    if present:
        return np.logical_or.reduce(present)
    # The file need not say how large a frame is. A mask of another frame is read faster than the picture.
    other = next((mask for track in tracks for mask in track if mask is not None), None)
    picture = paths[frame]
    shape = read_picture(picture, f"frame {picture}").size[::-1] if other is None else decode_mask(other).shape
    return np.zeros(shape, dtype=bool)


def annotators(video: VideoSample) -> list[dict[str, VideoExpression]]:
    """The expressions of a Ref-DAVIS17 video by annotator: four who each described every object once.

    Expression number `4 * object + annotator` belongs to that annotator, as in every published conversion.

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
