"""Records of a video: every run's masks against the ones meant, frame by frame, or kept for a server that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_litelvlm.data.masks import decode_mask, encode_mask
from transformers_litelvlm.data.referring_video import annotators
from transformers_litelvlm.data.samples import UnreadableImageError, VideoExpression, VideoSample
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.sweeping import RunCost, SharedEncodings, SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Measured, Task
from transformers_litelvlm.evaluation.video_metrics import (
    VideoScore,
    merge_objects,
    objects_of,
    score_frames,
    score_unsupervised,
)


def measure_video(
    video: VideoSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str, task: Task
) -> Measured:
    """Records of a video under every run.

    Args:
        video: its frames are all read, and held in memory with the masks of a few expressions.
        segmenter, runs: the sweep.
        protocol: `"all"`: every expression alone. `"annotators"`: all objects together, annotator by annotator.
        task: whether there are masks to compare with.

    Raises:
        UnreadableImageError: a frame, or a picture of its objects, is missing or damaged.
        ValueError: frames, or their masks, differ in size.
    """
    frames = [video.load_frame(number) for number in range(len(video.frame_names))]
    try:
        if protocol == "annotators":
            return _by_annotator(video, frames, segmenter, runs)
        return _by_expression(video, frames, segmenter, runs, task)
    except UnreadableImageError:
        raise
    except ValueError as error:
        raise ValueError(f"Video {video.video_id}: {error}") from error


def _by_expression(
    video: VideoSample, frames: list[Image.Image], segmenter: SweepSegmenter, runs: list[Run], task: Task
) -> Measured:
    # Encoded, for the masks of a long video need gigabytes.
    meant = [
        [encode_mask(expression.mask(number)) for number in range(len(frames))] if task.is_scored else []
        for expression in video.expressions
    ]
    shared = segmenter.encode(frames, video.expressions)
    measured = Measured()
    for run in runs:
        cost = measured.costs[run.run_id] = RunCost()
        predicted = _predictions(segmenter, run, shared, cost)
        for expression, targets, masks in zip(video.expressions, meant, predicted, strict=True):
            flags = [] if masks.any() else ["empty_prediction"]
            numbers: list[float] = []
            if task.is_scored:
                numbers = _numbers(score_frames(masks, map(decode_mask, targets)))
                if not any(decode_mask(target).any() for target in targets):
                    flags.insert(0, "empty_target")
            else:
                measured.masks.append(_for_server(run, video, expression, masks))
            measured.rows.append([*_names(run, video, expression), *numbers, len(frames), flags])
    return measured


def _by_annotator(
    video: VideoSample, frames: list[Image.Image], segmenter: SweepSegmenter, runs: list[Run]
) -> Measured:
    if video.load_objects is None:
        raise ValueError("there are no pictures of all its objects.")
    targets = [video.load_objects(number) for number in range(len(frames))]
    groups = annotators(video)
    # The dialogues of an annotator together: what the objects' masks are merged from is in memory at once.
    expressions = [expression for group in groups for expression in group.values()]
    shared = segmenter.encode(frames, expressions, part_sizes=[len(group) for group in groups])
    measured = Measured()
    for run in runs:
        cost = measured.costs[run.run_id] = RunCost()
        outputs = segmenter.outputs(run, shared, cost)
        for annotator, (group, output) in enumerate(zip(groups, outputs, strict=True)):
            predicted = list(_merged(group, output.mask_logits[0]))
            scores = score_unsupervised(predicted, targets)
            for number, score in zip(objects_of(targets), scores, strict=True):
                nobodys = VideoExpression(f"annotator {annotator}, object {number}", "")  # annotated, not described
                names = _names(run, video, group.get(str(number), nobodys))
                measured.rows.append([*names, *_numbers(score), len(frames), []])
    return measured


def _merged(group: dict[str, VideoExpression], logits: torch.Tensor) -> Iterator[np.ndarray]:
    """Of every frame the map of object numbers, from logits `(T, F, H, W)`."""
    for frame in range(logits.shape[1]):
        probabilities = logits[:, frame].sigmoid().cpu().numpy()
        yield merge_objects(dict(zip(group, probabilities, strict=True)))


def _predictions(segmenter: SweepSegmenter, run: Run, shared: SharedEncodings, cost: RunCost) -> Iterator[np.ndarray]:
    """Masks `(F, H, W)` of one expression after the other."""
    for output in segmenter.outputs(run, shared, cost):
        yield from output.masks[0].cpu().numpy()


def count_video_as_wrong(video: VideoSample, runs: list[Run], protocol: str, task: Task) -> Measured:
    """The expressions of an unreadable video as if nothing had been predicted, with scores of 0 and a flag.

    Raises:
        UnreadableImageError: a server wants masks, and no frame can be read, so their size is not known.
    """
    expressions: Iterable[VideoExpression] = video.expressions
    if protocol == "annotators":
        expressions = [expression for group in annotators(video) for expression in group.values()]
    measured = Measured()
    num_frames = len(video.frame_names)
    scores = [0.0, 0.0, 0.0] if task.is_scored else []
    masks = None if task.is_scored else np.zeros((num_frames, *_size_of_frames(video)), dtype=bool)
    for run in runs:
        for expression in expressions:
            measured.rows.append([*_names(run, video, expression), *scores, num_frames, ["unreadable_image"]])
            if masks is not None:
                measured.masks.append(_for_server(run, video, expression, masks))
    return measured


def _size_of_frames(video: VideoSample) -> tuple[int, int]:
    for number in range(len(video.frame_names)):
        try:
            width, height = video.load_frame(number).size
            return height, width
        except UnreadableImageError as error:
            last = error
    raise last


def _names(run: Run, video: VideoSample, expression: VideoExpression) -> list[str]:
    return [run.run_id, video.video_id, expression.expression_id, expression.sentence]


def _numbers(score: VideoScore) -> list[float]:
    return [score.j_and_f, score.j, score.f]


def _for_server(run: Run, video: VideoSample, expression: VideoExpression, masks: np.ndarray) -> list[Any]:
    """See [`Measured`]."""
    counts = [encode_mask(mask)["counts"] for mask in masks]
    return [run.run_id, video.video_id, expression.expression_id, list(masks.shape[1:]), counts]
