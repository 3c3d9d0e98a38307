"""Everything that is measured of one image and its sentences, as rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.analysis import language
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.association import auroc, partial_spearman, pearson, spearman
from transformers_litelvlm.analysis.coverage import distance_from_centre, moved, ring_around, token_coverage
from transformers_litelvlm.analysis.image import (
    EMPTY,
    MOVED,
    OTHER_IMAGE,
    OTHER_OBJECT,
    OWN,
    AnalysedImage,
    number_of,
    of_layer,
)
from transformers_litelvlm.analysis.selections import Choice
from transformers_litelvlm.data.samples import ImageSample
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.runs import sized
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.pruning.selection import resolve_budget


# Of each row: what was measured, of which score or selection, against what, and the number.
Row = tuple[str, str, str, str, str, float]
ROW_NAMES = ("image_id", "sentence_id", "quantity", "of", "against", "value")
# The same with the number of the sentence in its image instead of the names.
Measurement = tuple[int, str, str, str, float]

UNPRUNED = "unpruned"


@dataclass
class Analyst:
    """What is the same for all images; arguments as in [`~analysis.image.AnalysedImage`]."""

    segmenter: SweepSegmenter
    args: AnalysisArguments
    of_others: list[tuple[str, str]]

    def measure(self, index: int, sample: ImageSample) -> tuple[list[Row], list[dict[str, Any]]]:
        """Rows of an image, by its number in the split; and for the first images the scores of its first sentence, to
        be drawn. Raises UnreadableImageError if the image or a mask is missing or damaged."""
        image = AnalysedImage(self.segmenter, self.args, self.of_others, sample)
        rows: list[Row] = [
            (sample.image_id, image.sentences[number].sentence_id, quantity, of, against, value)
            for number, quantity, of, against, value in measurements(image)
        ]
        maps = [to_draw(image, index)] if index < self.args.examples and image.sentences else []
        return [row for row in rows if np.isfinite(row[-1])], maps


def measurements(image: AnalysedImage) -> Iterator[Measurement]:
    """Number of the sentence, and the rest of a row."""
    if not image.sentences:
        return
    yield from where_referents_stand(image)
    yield from agreement(image)
    yield from masks_of_choices(image)


def where_referents_stand(image: AnalysedImage) -> Iterator[Measurement]:
    """Claim 1: areas under the ROC curve for the tokens of the referent, and means inside, around and outside."""
    threshold, grid = image.args.coverage, image.grid
    for number, sentence in enumerate(image.sentences):
        is_referent = image.coverage[number] >= threshold
        ring = ring_around(is_referent, grid)
        generator = np.random.default_rng(number_of(image.sample.image_id, sentence.sentence_id))
        elsewhere = token_coverage(moved(image.masks[number], generator), image.region, grid) >= threshold
        for name, of_sentences in image.scores.items():
            score = of_sentences[number]
            sign = -1 if name in image.similarity else 1  # of similarity the LOW end is the claim
            yield number, "auroc", name, OWN, auroc(sign * score, is_referent)
            yield number, "auroc", name, MOVED, auroc(sign * score, elsewhere)
            for place, where in (("inside", is_referent), ("ring", ring), ("outside", ~is_referent & ~ring)):
                if is_referent.any() and where.any():
                    yield number, "mean", name, place, float(score[where].mean())
        for kind, of_texts in image.similarity.items():
            for control in (OTHER_OBJECT, OTHER_IMAGE, EMPTY):
                if not np.isnan(of_texts[control][number]).any():
                    yield number, "auroc", kind, control, auroc(-of_texts[control][number], is_referent)


def agreement(image: AnalysedImage) -> Iterator[Measurement]:
    """Claim 2: correlations of the scores with what the language model makes of the tokens."""
    centre = distance_from_centre(image.grid)
    given = np.column_stack([image.of_image["norm"], centre])
    for number in range(len(image.sentences)):
        for signal, of_sentences in image.signals.items():
            values = of_sentences[number]
            if np.isnan(values).any():
                continue
            for name, of_score in image.scores.items():
                score = of_score[number]
                yield number, "spearman", name, signal, spearman(score, values)
                if of_layer(signal):
                    continue  # of single layers one number is enough
                yield number, "pearson", name, signal, pearson(score, values)
                if name != "norm":
                    yield number, "partial", name, signal, partial_spearman(score, values, given)
            yield number, "auroc", signal, OWN, auroc(values, image.coverage[number] >= image.args.coverage)


@torch.no_grad()
def masks_of_choices(image: AnalysedImage) -> Iterator[Measurement]:
    """Claim 3: pixels of the masks from each choice of tokens, at each budget."""
    yield from _scored(image, UNPRUNED, UNPRUNED, image.unpruned_logits > 0)
    base, num_tokens = image.segmenter.base_pruning, len(image.tokens)
    for size in image.args.budgets:
        budget = budget_of(size, num_tokens)
        settings = language.settings_of(image.model, base, budget)
        for name, choice in image.choices.items():
            indices = choice.indices(budget, settings.in_raster_order)
            kept = partial(_kept, image.tokens, indices)
            yield from _scored(image, name, str(size), image.logits(settings, kept) > 0, choice)


def _kept(tokens: torch.Tensor, indices: torch.Tensor, rows: slice) -> PrunedImageFeatures:
    return language.kept_features(tokens, indices[rows])


def budget_of(size: int | float, num_tokens: int) -> int:
    """Tokens that an option `budgets` means: a number of them, or a fraction."""
    return resolve_budget(num_tokens, **sized(size))


def _scored(
    image: AnalysedImage, name: str, against: str, masks: torch.Tensor, choice: Choice | None = None
) -> Iterator[Measurement]:
    for number, score in enumerate(score_masks(masks, image.targets, image.ignored)):
        if choice is not None and choice.relevance[number].isnan().any():
            continue
        yield number, "intersection", name, against, score.intersection
        yield number, "union", name, against, score.union


def to_draw(image: AnalysedImage, index: int) -> dict[str, Any]:
    """The maps of the first sentence, and what is kept at the first budget."""
    names = ("dot", "context", "class_attention", "attention_seg", "gradient", "leave_one_out_logits")
    known = image.scores | image.signals
    maps = {name: known[name][0] for name in names if name in known and not np.isnan(known[name][0]).any()}
    budget = budget_of(image.args.budgets[0], len(image.tokens))
    return {
        "index": index,
        "sentence_id": image.sentences[0].sentence_id,
        "grid": list(image.grid),
        "region": list(image.region),
        "maps": {name: [float(value) for value in values] for name, values in maps.items()},
        "kept": image.choices["reversed"].indices(budget, True)[0].tolist(),
    }


def sentences_of_others(samples: Iterable[Any]) -> list[tuple[str, str]]:
    """The sentences of the first images, with the ids of these."""
    images = [sample for sample in islice(samples, 64) if isinstance(sample, ImageSample)]
    return [(image.image_id, sentence.sentence) for image in images for sentence in image.sentences]
