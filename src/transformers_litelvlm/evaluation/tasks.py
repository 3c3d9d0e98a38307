"""What an evaluation asks for: masks of images, of videos, or of videos whose masks only a server has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from transformers_litelvlm.data.referring_video import annotators
from transformers_litelvlm.data.samples import ImageSample, VideoSample
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.metrics import THRESHOLDS
from transformers_litelvlm.evaluation.records import check_batch
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.stopwatch import STAGES
from transformers_litelvlm.evaluation.submissions import ARCHIVE_FOLDERS
from transformers_litelvlm.utils.extras import needs_extra


with needs_extra("eval", "An evaluation"):
    import pyarrow as pa


# What a run takes for an image or video: visual tokens per dialogue, bytes, milliseconds of each stage.
COSTS = pa.schema(
    [("run_id", pa.string()), ("peak_memory", pa.int64()), *((name, pa.float64()) for name in ("num_kept", *STAGES))]
)


@dataclass(frozen=True)
class Task:
    """One kind of evaluation.

    Args:
        kind: `"images"` or `"videos"`.
        schema: of a record: run, sample, sentence, its wording, then numbers, then flags.
        key: columns that no two records share.
        score: of the records of every seed, a metric by name, from which value, interval and tests follow.
        metrics: all of them, the main one first; empty if there is nothing to compare with.
        main: those with intervals and tests.
        progress: column whose mean is shown while it runs.
    """

    kind: str
    schema: pa.Schema
    key: tuple[str, ...]
    score: Callable[[list[pa.Table], str], statistics.RatioOfSums]
    metrics: tuple[str, ...]
    main: tuple[str, ...]
    progress: str

    @property
    def is_scored(self) -> bool:
        return bool(self.metrics)

    def check_of(self, runs: list[Run], protocol: str) -> Callable[[dict[str, Any]], None]:
        """[`check_batch`] for batches of these runs."""
        questions_of = {run.run_id: run.seed if protocol == "glamm" else None for run in runs}
        return partial(check_batch, schema=self.schema, questions_of=questions_of, asks_all=protocol == "all")


def _schema(sample: str, numbers: dict[str, pa.DataType]) -> pa.Schema:
    texts = [(name, pa.string()) for name in ("run_id", sample, "expression_id", "sentence")]
    return pa.schema([*texts, *numbers.items(), ("flags", pa.list_(pa.string()))])


def _columns(seeds: list[pa.Table], *names: str) -> list[np.ndarray]:
    """Columns of records, `(seeds, sentences)` each, then the image or video of each sentence."""
    columns = [np.stack([records[name].to_numpy() for records in seeds]) for name in names]
    return [*columns, np.array(seeds[0].column(1).to_pylist())]


def _image_metric(seeds: list[pa.Table], name: str) -> statistics.RatioOfSums:
    """An IoU of 0 by decree (unreadable) stays 0."""
    intersections, unions, ious, images = _columns(seeds, "intersection", "union", "iou")
    # Without any union, nothing is meant and nothing predicted in the whole split.
    if name == "giou" or (name == "ciou" and not unions.any()):
        return statistics.mean(ious, images)
    if name == "ciou":
        return statistics.ratio_of_sums(intersections, unions, images)
    if name.startswith("box_accuracy"):
        [ious, _] = _columns(seeds, "box_iou")
    return statistics.mean(ious >= float(name.partition("@")[2]), images)


_IMAGE_NUMBERS = {"intersection": pa.int64(), "union": pa.int64(), "iou": pa.float64()}
IMAGES = Task(
    kind="images",
    schema=_schema("image_id", _IMAGE_NUMBERS),
    key=("run_id", "expression_id"),
    score=_image_metric,
    metrics=("giou", "ciou", *(f"precision@{threshold}" for threshold in THRESHOLDS)),
    main=("giou", "ciou"),
    progress="iou",
)
# The same where the model answers with boxes.
BOXES = replace(
    IMAGES,
    schema=_schema("image_id", {**_IMAGE_NUMBERS, "box_iou": pa.float64()}),
    metrics=(*IMAGES.metrics, "box_accuracy@0.5"),
)
VIDEO_METRICS = ("j_and_f", "j", "f")
VIDEOS = Task(
    kind="videos",
    schema=_schema("video_id", {**dict.fromkeys(VIDEO_METRICS, pa.float64()), "num_frames": pa.int64()}),
    key=("run_id", "video_id", "expression_id"),
    score=lambda seeds, name: statistics.mean(*_columns(seeds, name)),
    metrics=VIDEO_METRICS,
    main=VIDEO_METRICS,
    progress="j_and_f",
)
# The masks go into a file for the server of the data set.
HIDDEN_VIDEOS = replace(
    VIDEOS, schema=_schema("video_id", {"num_frames": pa.int64()}), metrics=(), main=(), progress="num_frames"
)


def choose_task(
    split: ReferringSplit, args: EvaluationArguments, takes_videos: bool, writes_boxes: bool = False
) -> Task:
    """What is to be done with a split, by its first sample, if the model `takes_videos`, or `writes_boxes`. Raises
    ValueError if the model or the protocol is not for this data, or there is nothing to compare with."""
    first: ImageSample | VideoSample = next(iter(split))
    if isinstance(first, ImageSample):
        if args.protocol == "annotators":
            raise ValueError(f"`protocol` 'annotators' is for Ref-DAVIS17, `dataset` {args.dataset!r} holds images.")
        return BOXES if writes_boxes else IMAGES
    if not takes_videos:
        raise ValueError(
            f"`dataset` {args.dataset!r} holds videos, and the model writes masks of images only. Models of the"
            " Qwen2.5-VL family (UniPixel) write masks of videos."
        )
    if args.protocol == "glamm":
        raise ValueError(f"`protocol` 'glamm' is for images, `dataset` {args.dataset!r} holds videos.")
    if args.protocol == "annotators":
        if first.load_objects is None:
            raise ValueError(f"`protocol` 'annotators' needs pictures of all objects, {split.source} has none.")
        annotators(first)
    if first.expressions[0].load_mask is not None:
        return VIDEOS
    if split.name not in ARCHIVE_FOLDERS:
        raise ValueError(
            f"{split.source} has no masks to compare with, and no server scores {split.name!r}. Sets with a server:"
            f" {', '.join(ARCHIVE_FOLDERS)}."
        )
    return HIDDEN_VIDEOS
