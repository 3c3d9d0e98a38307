"""Records of an image: every run's masks against the ones meant."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from transformers_litelvlm.data.samples import ImageSample, ReferringSentence, UnreadableImageError
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.sampling import choose_sentences
from transformers_litelvlm.evaluation.sweeping import SharedEncodings, SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Measured


class Questions(NamedTuple):
    """Sentences that are asked about an image, encoded, and the masks meant.

    Args:
        sentences: T of them.
        shared: what all runs need.
        targets: `(T, H, W)` booleans.
        ignore: `(T, H, W)` booleans of pixels that do not count.
    """

    sentences: list[ReferringSentence]
    shared: SharedEncodings
    targets: torch.Tensor
    ignore: torch.Tensor | None


def measure_image(
    index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> Measured:
    """Records of an image under every run.

    Args:
        index: number of the image in its split.
        sample, segmenter, runs, protocol: the sweep.

    Raises:
        UnreadableImageError: the picture or a mask is missing or damaged.
    """
    image = sample.load_image()
    asked: dict[int | None, Questions] = {}  # by the seed that draws them
    for draw in dict.fromkeys(_draw(run, protocol) for run in runs):
        sentences, templates = _choose(segmenter, sample, protocol, draw, index)
        targets, ignore = _masks_meant(sentences, segmenter.model.device)
        asked[draw] = Questions(sentences, segmenter.encode(image, sentences, templates), targets, ignore)
    measured = Measured()
    for run in runs:
        questions = asked[_draw(run, protocol)]
        output = segmenter.segment(run, questions.shared)
        scores = score_masks(output.masks, questions.targets, questions.ignore)
        for sentence, score in zip(questions.sentences, scores, strict=True):
            flags = [name for name in ("empty_target", "empty_prediction") if getattr(score, name)]
            numbers = [score.intersection, score.union, score.iou(), flags]
            row = [run.run_id, sample.image_id, sentence.sentence_id, sentence.sentence, *numbers]
            measured.rows.append(row)
        measured.costs[run.run_id] = output.cost
    return measured


def count_image_as_wrong(
    index: int, sample: ImageSample, segmenter: SweepSegmenter, runs: list[Run], protocol: str
) -> Measured:
    """The sentences of an unreadable image as if nothing had been predicted, with an IoU of 0 and a flag."""
    measured = Measured()
    for run in runs:
        for sentence in _choose(segmenter, sample, protocol, _draw(run, protocol), index)[0]:
            try:
                target = sentence.mask if sentence.ignore is None else sentence.mask & ~sentence.ignore
                area = int(np.count_nonzero(target))
            except UnreadableImageError:  # a mask whose size is that of the picture
                area = 0
            row = [run.run_id, sample.image_id, sentence.sentence_id, sentence.sentence]
            measured.rows.append([*row, 0, area, 0.0, ["unreadable_image"]])
    return measured


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
