"""MeViS: expressions about motion, which may mean several objects at once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.referring_video import NO_MASKS_NOTE, frame_paths, read_expressions
from transformers_litelvlm.data.samples import VideoExpression, VideoSample
from transformers_litelvlm.utils.files import read_json


def open_mevis(name: str, root: str | os.PathLike, split: str) -> tuple[list, Any, tuple[str, ...]]:
    """Rows and reader of a folder with `<split>/{JPEGImages,meta_expressions.json,mask_dict.json}`.

    The folder may be inside of `mevis`. `"valid_u"` is scored here, `"valid"` has no masks.
    """
    folders = [base / split for base in (Path(root) / "mevis", Path(root)) if (base / split).is_dir()]
    folder = folders[0] if folders else Path(root) / split
    videos = read_expressions(folder / "meta_expressions.json")
    path = folder / "mask_dict.json"
    masks = read_json(path) if path.exists() else None
    notes = (NO_MASKS_NOTE,) if masks is None else ()
    return sorted(videos.items()), partial(_read_video, folder / "JPEGImages", masks), notes


def _read_video(pictures: Path, masks: dict | None, index: int, row: tuple[str, dict]) -> VideoSample:
    video, record = row
    expressions = []
    for number, entry in record["expressions"].items():
        load_mask = None
        if masks is not None:
            tracks = [masks[str(track)] for track in entry["anno_id"]]
            load_mask = partial(_union, tracks, (record["height"], record["width"]))
        objects = tuple(map(str, entry.get("obj_id", ())))
        expressions.append(VideoExpression(number, entry["exp"], objects, load_mask))
    return VideoSample(video, tuple(record["frames"]), frame_paths(pictures, video, record), tuple(expressions))


def _union(tracks: list[list], size: tuple[int, int], frame: int) -> np.ndarray:
    present = [decode_mask(track[frame]) for track in tracks if track[frame] is not None]
    return np.logical_or.reduce(present) if present else np.zeros(size, dtype=bool)
