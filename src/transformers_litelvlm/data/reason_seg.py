"""ReasonSeg: the original folder with its ignore regions, and the copies on the Hub, which lost them."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from transformers_litelvlm.data.hub_rows import open_rows, require_columns
from transformers_litelvlm.data.masks import checked_points
from transformers_litelvlm.data.samples import ImageSample, ReferringSentence, read_picture
from transformers_litelvlm.utils.extras import needs_extra


logger = logging.get_logger(__name__)

HUB_IDS = {"val": "Ricky06662/ReasonSeg_val", "test": "Ricky06662/ReasonSeg_test"}
HUB_NOTE = (
    "this copy of ReasonSeg has no ignore regions: they became part of the targets, so on the images that have some"
    " the scores differ from those of LISA's evaluation; read the original folder for those"
)
TARGET, IGNORED = 1, 255


def open_reason_seg(
    name: str, source: Any, split: str, streaming: bool = False, revision: str | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Rows and reader of ReasonSeg.

    Args:
        source: the original folder (with or without `ReasonSeg` in it), or a Hub id, folder or parquet file in the
            schema of Ricky06662/ReasonSeg_val; `None` for that.
        split: `"val"`, `"test"`, and `"train"` for the original.
    """
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        folders = [base / split for base in (Path(source) / "ReasonSeg", Path(source)) if (base / split).is_dir()]
        if folders and (files := sorted(folders[0].glob("*.json"))):
            return files, partial(_read_file, split), ()
    if source is None and split not in HUB_IDS:
        raise ValueError(
            f"`split` {split!r} of ReasonSeg is not on the Hub, only {', '.join(HUB_IDS)}. Give `source`."
        )
    source = HUB_IDS[split] if source is None else source
    rows = open_rows(source, "test", streaming, revision)  # each split is a data set whose only split is "test"
    advice = "Take Ricky06662/ReasonSeg_val or the original folder."
    require_columns(rows, {"image", "image_id", "text", "mask"}, source, advice)
    # As Python lists, a mask of 300,000 booleans would take long to read.
    rows = rows.with_format("arrow")
    logger.warning(f"{source}: {HUB_NOTE}.")
    return rows, _read_hub_row, (HUB_NOTE,)


def _read_file(split: str, index: int, path: Path) -> ImageSample:
    try:
        text = path.read_bytes()
        try:
            record = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError:  # a few files are in the encoding of Windows
            record = json.loads(text.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    picture = path.with_suffix(".jpg")
    # Evaluation asks the first question only, as LISA does.
    texts = [record["text"]] if isinstance(record["text"], str) else record["text"]
    questions = texts if split == "train" else texts[:1]
    shapes = [{"label": shape["label"], "points": shape["points"]} for shape in record["shapes"]]
    shapes = [shape for shape in shapes if shape["label"].lower() != "flag"]
    ignores = any("ignore" in shape["label"].lower() for shape in shapes)
    sentences = [
        ReferringSentence(
            f"{path.stem}/{place}",
            question,
            partial(_decode, shapes, picture, TARGET),
            partial(_decode, shapes, picture, IGNORED) if ignores else None,
            path.stem,
            {"is_sentence": record["is_sentence"]},
        )
        for place, question in enumerate(questions)
    ]
    return ImageSample(path.stem, str(picture), tuple(sentences))


def _decode(shapes: list[dict], picture: Path, value: int) -> np.ndarray:
    width, height = read_picture(picture, f"image {picture.stem}").size
    return draw_shapes(shapes, height, width) == value


def draw_shapes(shapes: list[dict], height: int, width: int) -> np.ndarray:
    """The label map of a ReasonSeg annotation: larger polygons first, so that smaller ones are on top.

    OpenCV draws, because LISA's masks are its, outline included: other libraries differ in 0.3 to 1.6 % of the pixels
    of an object.

    Args:
        shapes: `label` and `points` of each polygon. A label with "ignore" in it becomes 255, any other 1.

    Returns:
        `(height, width)` uint8 of 0, 1 and 255.

    Raises:
        ValueError: points are no numbers, or far outside the image.
        ImportError: OpenCV is not installed.
    """
    with needs_extra("reasonseg", "Drawing the polygons of ReasonSeg"):
        import cv2

    # Cut off decimals, as LISA does.
    polygons = [checked_points(s["points"], height, width, in_pairs=True).astype(np.int32) for s in shapes]
    areas = [int(cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 1).sum()) for points in polygons]
    canvas = np.zeros((height, width), np.uint8)
    for place in np.argsort(areas)[::-1]:
        value = IGNORED if "ignore" in shapes[place]["label"].lower() else TARGET
        cv2.fillPoly(canvas, [polygons[place]], value)  # the outline included
    return canvas


def _read_hub_row(index: int, row: Any) -> ImageSample:
    mask = row.column("mask").combine_chunks()
    record = row.drop_columns(["mask"]).to_pylist()[0]
    height, width = record["img_height"], record["img_width"]
    mask = mask.flatten().flatten().to_numpy(zero_copy_only=False).reshape(height, width) != 0
    sentence = ReferringSentence(f"{record['image_id']}/0", record["text"], mask.copy, object_id=record["ann_id"])
    return ImageSample(str(record["image_id"]), record["image"], (sentence,))
