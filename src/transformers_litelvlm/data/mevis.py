"""MeViS: expressions about motion, which may mean several objects at once."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.referring_video import NO_MASKS_NOTE, frame_paths, read_expressions
from transformers_litelvlm.data.samples import VideoExpression, VideoSample


def open_mevis(name: str, root: str | os.PathLike, split: str) -> tuple[list, Any, tuple[str, ...]]:
    """Rows and reader of a folder with `<split>/{JPEGImages,meta_expressions.json,mask_dict.json}`.

    Args:
        name: what to call it.
        root: the folder, with or without `mevis` in it.
        split: `"train"`, `"valid_u"`, which is scored here, or `"valid"`, which has no masks.

    Returns:
        Rows, the function that reads one, and notes.
    """
    folders = [base / split for base in (Path(root) / "mevis", Path(root)) if (base / split).is_dir()]
    folder = folders[0] if folders else Path(root) / split
    videos = read_expressions(folder / "meta_expressions.json")
    masks = None
    if (path := folder / "mask_dict.json").exists():
        try:
            masks = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not readable JSON: {error}") from error
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
