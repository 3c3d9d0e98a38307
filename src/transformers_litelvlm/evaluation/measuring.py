"""Records of a batch of images: every run's masks against the ones meant."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.data.samples import ImageSample, ReferringSentence, UnreadableImageError, VideoSample
from transformers_litelvlm.data.splits import count_samples
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.sampling import choose_sentences
from transformers_litelvlm.evaluation.sweeping import SharedEncodings, SweepSegmenter


@dataclass
class Questions:
    """
    Sentences that are asked about an image, encoded, and the masks meant.

    Args:
        sentences (`list`): T of them.
        shared (`SharedEncodings`): What all runs need.
        targets (`torch.Tensor`): `(T, H, W)` booleans.
        ignore (`torch.Tensor`, *optional*): `(T, H, W)` booleans of pixels that do not count.
    """

    sentences: list[ReferringSentence]
    shared: SharedEncodings
    targets: torch.Tensor
    ignore: torch.Tensor | None


@dataclass
class BatchRecords:
    """
    Rows of `RECORD_SCHEMA`, and by run what they cost, summed over images.

    Args:
        rows (`list`): The records.
        milliseconds (`dict`): By run and stage.
        num_kept (`dict`): By run, visual tokens per dialogue.
        peak_memory (`dict`): By run, the most bytes on the device.
        num_images (`int`): That were segmented.
        counts (`dict`): Samples, objects and sentences that were read.
    """

    rows: list[list[Any]] = field(default_factory=list)
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    num_kept: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    num_images: int = 0
    counts: dict[str, int | None] = field(default_factory=dict)


def measure_batch(
    samples: list[tuple[int, ImageSample | VideoSample]],
    segmenter: SweepSegmenter,
    runs: list[Run],
    args: EvaluationArguments,
) -> BatchRecords:
    """
    Segments a batch under every run.

    Args:
        samples: Images with their numbers in the split.
        segmenter, runs, args: The sweep.

    Raises:
        UnreadableImageError: A picture is missing or damaged, and `on_unreadable` is `"stop"`.
        ValueError: The data holds videos.
    """
    batch = BatchRecords(counts=asdict(count_samples(sample for _, sample in samples)))
    for index, sample in samples:
        if not isinstance(sample, ImageSample):
            raise ValueError(f"`dataset` {args.dataset!r} holds videos; only images can be evaluated by this command.")
        try:
            _measure_image(batch, index, sample, segmenter, runs, args.protocol)
        except UnreadableImageError:
            if args.on_unreadable == "stop":
                raise
            _count_as_wrong(batch, index, sample, segmenter, runs, args.protocol)
    return batch


def _measure_image(
    batch: BatchRecords, index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> None:
    image = sample.load_image()
    asked: dict[int | None, Questions] = {}  # by the seed that draws them
    # Everything that can be unreadable is read before the first record is made.
    for draw in dict.fromkeys(_draw(run, protocol) for run in runs):
        sentences, templates = _choose(segmenter, sample, protocol, draw, index)
        targets, ignore = _masks_meant(sentences, segmenter.model.device)
        asked[draw] = Questions(sentences, segmenter.encode(image, sentences, templates), targets, ignore)
    for run in runs:
        questions = asked[_draw(run, protocol)]
        output = segmenter.segment(run, questions.shared)
        scores = score_masks(output.masks, questions.targets, questions.ignore)
        for sentence, score in zip(questions.sentences, scores, strict=True):
            flags = [name for name in ("empty_target", "empty_prediction") if getattr(score, name)]
            numbers = [score.intersection, score.union, score.iou(), flags]
            batch.rows.append([run.run_id, sample.image_id, sentence.sentence_id, sentence.sentence, *numbers])
        stages = batch.milliseconds.setdefault(run.run_id, {})
        for stage, milliseconds in output.times.items():
            stages[stage] = stages.get(stage, 0.0) + milliseconds
        batch.num_kept[run.run_id] = batch.num_kept.get(run.run_id, 0.0) + output.num_kept
        peaks = [peak for peak in (batch.peak_memory.get(run.run_id), output.peak_memory) if peak is not None]
        batch.peak_memory[run.run_id] = max(peaks, default=None)
    batch.num_images += 1


def _count_as_wrong(
    batch: BatchRecords, index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> None:
    """The sentences of an unreadable image as if nothing had been predicted, with an IoU of 0 and a flag."""
    for run in runs:
        for sentence in _choose(segmenter, sample, protocol, _draw(run, protocol), index)[0]:
            try:
                target = sentence.mask if sentence.ignore is None else sentence.mask & ~sentence.ignore
                area = int(np.count_nonzero(target))
            except UnreadableImageError:  # a mask whose size is that of the picture
                area = 0
            row = [run.run_id, sample.image_id, sentence.sentence_id, sentence.sentence]
            batch.rows.append([*row, 0, area, 0.0, ["unreadable_image"]])


def _draw(run: Run, protocol: str) -> int | None:
    """The seed that draws the sentences of a run; under `"all"` none is drawn."""
    return run.seed if protocol == "glamm" else None


def _choose(
    segmenter: SweepSegmenter, sample: ImageSample, protocol: str, seed: int | None, index: int
) -> tuple[list[ReferringSentence], list[str] | None]:
    return choose_sentences(sample.sentences, protocol, segmenter.processor.question_templates, seed, index)


def _masks_meant(sentences: list[ReferringSentence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Targets and, if there are any, ignored pixels, `(T, H, W)` booleans."""
    targets = np.stack([sentence.mask for sentence in sentences])
    ignored = [sentence.ignore for sentence in sentences]
    if all(region is None for region in ignored):
        return torch.from_numpy(targets).to(device), None
    regions = [np.zeros_like(targets[0]) if region is None else region for region in ignored]
    return torch.from_numpy(targets).to(device), torch.from_numpy(np.stack(regions)).to(device)
