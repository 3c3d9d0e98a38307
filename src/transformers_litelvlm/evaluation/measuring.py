"""Records of images and videos: every run's masks against the ones meant, or kept for a server that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_litelvlm.data.masks import box_around, decode_mask, encode_mask
from transformers_litelvlm.data.referring_video import annotators
from transformers_litelvlm.data.samples import (
    ImageSample,
    ReferringSentence,
    UnreadableImageError,
    VideoExpression,
    VideoSample,
)
from transformers_litelvlm.data.splits import count_samples
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.sweeping import RunCost, RunOutput, SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Task
from transformers_litelvlm.evaluation.video_metrics import (
    VideoScore,
    merge_objects,
    objects_of,
    score_frames,
    score_unsupervised,
)
from transformers_litelvlm.models.masks.boxes import box_iou


GLAMM_SENTENCES = 3


@dataclass
class Measured:
    """What all runs say about some images or videos; a batch is saved as this."""

    rows: list[list[Any]] = field(default_factory=list)  # records in the order of the task's schema
    # If a server has the masks meant: run, video, expression, height and width, and of each frame the `counts` of a
    # COCO run-length encoding.
    masks: list[list[Any]] = field(default_factory=list)
    # Of each run and each image or video that was segmented, by the names of `tasks.COSTS`.
    costs: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int | None] = field(default_factory=dict)  # samples, objects and sentences that were read

    def add_cost(self, run: Run, cost: RunCost) -> None:
        """Add what a run took, once it is complete."""
        num_kept = sum(cost.num_kept) / len(cost.num_kept)
        self.costs.append({"run_id": run.run_id, "num_kept": num_kept, "peak_memory": cost.peak_memory, **cost.times})


def measure_batch(
    samples: list[tuple[int, ImageSample | VideoSample]],
    segmenter: SweepSegmenter,
    runs: list[Run],
    args: EvaluationArguments,
    task: Task,
) -> Measured:
    """Segment a batch, images or videos with their numbers in the split, under every run.

    Raises:
        ValueError: something of an image or video cannot be used, and `on_unreadable` is `"stop"`: a picture or mask
            that is missing, damaged or of another size, a sentence that cannot be asked, masks that are not numbers.
            The message names the image or video.
    """
    batch = Measured(counts=asdict(count_samples(sample for _, sample in samples)))
    for index, sample in samples:
        try:
            if isinstance(sample, ImageSample):
                measured = measure_image(index, sample, segmenter, runs, args.protocol)
            else:
                measured = measure_video(sample, segmenter, runs, args.protocol, task)
        except ValueError as error:
            if args.on_unreadable == "stop":
                raise named(sample, error, " (`on_unreadable='continue'` would count it as wrong.)") from error
            if isinstance(sample, ImageSample):
                measured = _image_as_wrong(index, sample, segmenter, runs, args.protocol)
            else:
                measured = _video_as_wrong(sample, runs, args.protocol, task)
        batch.rows += measured.rows
        batch.masks += measured.masks
        batch.costs += measured.costs
    return batch


def named(sample: ImageSample | VideoSample, error: ValueError, hint: str = "") -> ValueError:
    """The same error with the name of the image or video before it, if it has not got one, and a hint behind it."""
    if isinstance(error, UnreadableImageError):
        return error
    name = f"Image {sample.image_id}" if isinstance(sample, ImageSample) else f"Video {sample.video_id}"
    return ValueError(f"{name}: {error}{hint}")


# --- images ---


def measure_image(
    index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> Measured:
    """Records of an image, by its number in the split, under every run. Raises UnreadableImageError if the picture or
    a mask is missing or damaged."""
    image = sample.load_image()
    measured = Measured()
    for sentences, templates, asking in _asked(index, sample, segmenter, runs, protocol):
        targets, ignore = masks_meant(sentences, image, segmenter.model.device)
        shared = segmenter.encode(image, sentences, templates)
        for run in asking:
            output = segmenter.segment(run, shared)
            scores, of_boxes = score_masks(output.masks, targets, ignore), _box_ious(output, targets)
            for sentence, score, of_box in zip(sentences, scores, of_boxes, strict=True):
                flags = [name for name in ("empty_target", "empty_prediction") if getattr(score, name)]
                numbers = [score.intersection, score.union, score.iou(), *of_box]
                measured.rows.append([*_names(run, sample.image_id, sentence), *numbers, flags])
            measured.add_cost(run, output.cost)
    return measured


def _image_as_wrong(
    index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> Measured:
    """The sentences of an unreadable image as if nothing had been predicted, with an IoU of 0 and a flag."""
    measured = Measured()
    for sentences, _, asking in _asked(index, sample, segmenter, runs, protocol):
        for sentence in sentences:
            try:
                target = sentence.mask if sentence.ignore is None else sentence.mask & ~sentence.ignore
                area = int(np.count_nonzero(target))
            except ValueError:  # the mask itself, or the picture that has its size
                area = 0
            numbers = [0, area, 0.0, *([0.0] if segmenter.writes_boxes else []), ["unreadable_image"]]
            measured.rows += [[*_names(run, sample.image_id, sentence), *numbers] for run in asking]
    return measured


def _box_ious(output: RunOutput, targets: torch.Tensor) -> list[list[float]]:
    """Of each sentence, IoU of the box around all that the answer locates with the box around the target.

    If an answer has points alone, the box is that of the predicted mask. Nothing located is right if nothing is meant.
    Without answers, nothing of each sentence.
    """
    if not output.answers:
        return [[] for _ in targets]
    ious = []
    for answer, mask, target in zip(output.answers, output.masks, targets, strict=True):
        predicted = answer.enclosing_box
        if predicted is None and answer.objects:
            predicted = box_around(mask.cpu().numpy())
        ious.append([box_iou(predicted, box_around(target.cpu().numpy()))])
    return ious


def choose_sentences(
    sentences: tuple[ReferringSentence, ...], protocol: str, templates: list[str], seed: int | None, index: int
) -> tuple[list[ReferringSentence], list[str] | None]:
    """The sentences of an image that are asked, and the question for each, `None` for the checkpoint's default one.

    Under `"glamm"` they are at most three, drawn without replacement, with questions drawn with replacement from
    `templates`: the random stream belongs to (`seed` of the run, `index` of the image in its split), so neither
    processes nor batches nor other images matter.
    """
    if protocol == "all":
        return list(sentences), None
    rng = np.random.default_rng([seed, index])
    places = rng.choice(len(sentences), size=min(GLAMM_SENTENCES, len(sentences)), replace=False)
    drawn = rng.integers(len(templates), size=len(places))
    return [sentences[place] for place in places], [templates[number] for number in drawn]


def _asked(
    index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> Iterator[tuple[list[ReferringSentence], list[str] | None, list[Run]]]:
    """Sentences and their questions, with the runs that ask them."""
    by_seed: dict[int | None, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed if protocol == "glamm" else None, []).append(run)
    for seed, asking in by_seed.items():
        templates = segmenter.processor.question_templates
        yield *choose_sentences(sample.sentences, protocol, templates, seed, index), asking


def masks_meant(
    sentences: list[ReferringSentence], image: Image.Image, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Targets and, if there are any, ignored pixels, `(T, H, W)` booleans."""
    masks, ignored = ([getattr(each, name) for each in sentences] for name in ("mask", "ignore"))
    for mask in (*masks, *ignored):
        if mask is not None and mask.shape != (image.height, image.width):
            raise ValueError(f"a mask has shape {mask.shape}, the picture {(image.height, image.width)}.")
    targets = np.stack(masks)
    if all(region is None for region in ignored):
        return torch.from_numpy(targets).to(device), None
    regions = [np.zeros_like(targets[0]) if region is None else region for region in ignored]
    return torch.from_numpy(targets).to(device), torch.from_numpy(np.stack(regions)).to(device)


# --- videos ---


def measure_video(
    video: VideoSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str, task: Task
) -> Measured:
    """Records of a video under every run: by the protocol `"all"`, every expression alone; by `"annotators"`, all
    objects together, annotator by annotator. All frames are read, and held in memory with the masks of a few
    expressions.

    Raises:
        UnreadableImageError: a frame, or a picture of its objects, is missing or damaged.
        ValueError: frames, or their masks, differ in size.
    """
    frames = [video.load_frame(number) for number in range(len(video.frame_names))]
    if protocol == "annotators":
        return _by_annotator(video, frames, segmenter, runs)
    return _by_expression(video, frames, segmenter, runs, task)


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
        cost = RunCost()
        outputs = segmenter.outputs(run, shared, cost)
        predicted = (masks for output in outputs for masks in output.masks[0].cpu().numpy())  # (F, H, W) each
        for expression, targets, masks in zip(video.expressions, meant, predicted, strict=True):
            flags = [] if masks.any() else ["empty_prediction"]
            numbers: list[float] = []
            if task.is_scored:
                numbers = _numbers(score_frames(masks, map(decode_mask, targets)))
                if not any(decode_mask(target).any() for target in targets):
                    flags.insert(0, "empty_target")
            else:
                measured.masks.append(_for_server(run, video, expression, masks))
            measured.rows.append([*_names(run, video.video_id, expression), *numbers, len(frames), flags])
        measured.add_cost(run, cost)
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
        cost = RunCost()
        outputs = segmenter.outputs(run, shared, cost)
        for annotator, (group, output) in enumerate(zip(groups, outputs, strict=True)):
            predicted = [
                merge_objects(dict(zip(group, logits.sigmoid().cpu().numpy(), strict=True)))
                for logits in output.mask_logits[0].unbind(1)  # of (T, F, H, W), frame by frame
            ]
            scores = score_unsupervised(predicted, targets)
            for number, score in zip(objects_of(targets), scores, strict=True):
                nobodys = VideoExpression(f"annotator {annotator}, object {number}", "")  # annotated, not described
                names = _names(run, video.video_id, group.get(str(number), nobodys))
                measured.rows.append([*names, *_numbers(score), len(frames), []])
        measured.add_cost(run, cost)
    return measured


def _video_as_wrong(video: VideoSample, runs: list[Run], protocol: str, task: Task) -> Measured:
    """The expressions of an unreadable video as if nothing had been predicted, with scores of 0 and a flag. Raises
    UnreadableImageError if a server wants masks, and no frame can be read, so that their size is not known."""
    expressions: Iterable[VideoExpression] = video.expressions
    if protocol == "annotators":
        expressions = [expression for group in annotators(video) for expression in group.values()]
    measured = Measured()
    num_frames = len(video.frame_names)
    scores = [0.0, 0.0, 0.0] if task.is_scored else []
    masks = None if task.is_scored else np.zeros((num_frames, *_size_of_frames(video)), dtype=bool)
    for run in runs:
        for expression in expressions:
            names = _names(run, video.video_id, expression)
            measured.rows.append([*names, *scores, num_frames, ["unreadable_image"]])
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


def _numbers(score: VideoScore) -> list[float]:
    return [score.j_and_f, score.j, score.f]


def _for_server(run: Run, video: VideoSample, expression: VideoExpression, masks: np.ndarray) -> list[Any]:
    """See [`Measured`]."""
    counts = [encode_mask(mask)["counts"] for mask in masks]
    return [run.run_id, video.video_id, expression.expression_id, list(masks.shape[1:]), counts]


# --- both ---


def _names(run: Run, sample_id: str, sentence: ReferringSentence | VideoExpression) -> list[str]:
    """What a record starts with."""
    sentence_id = sentence.sentence_id if isinstance(sentence, ReferringSentence) else sentence.expression_id
    return [run.run_id, sample_id, sentence_id, sentence.sentence]
