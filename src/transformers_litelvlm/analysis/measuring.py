"""Everything that is measured of one picture and its sentences, as rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.analysis import language
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.association import auroc, partial_spearman, pearson, spearman
from transformers_litelvlm.analysis.coverage import distance_from_centre, moved, ring_around, token_coverage
from transformers_litelvlm.analysis.pictures import (
    EMPTY,
    MOVED,
    OTHER_OBJECT,
    OTHER_PICTURE,
    OWN,
    Picture,
    number_of,
    of_layer,
)
from transformers_litelvlm.analysis.selections import Choice
from transformers_litelvlm.data.samples import ImageSample
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.pruning.selection import resolve_budget


# Of each row: what was measured, of which score or selection, against what, and the number.
Row = tuple[str, str, str, str, str, float]
ROW_NAMES = ("image_id", "sentence_id", "quantity", "of", "against", "value")
# The same with the number of the sentence in its picture instead of the names.
Measurement = tuple[int, str, str, str, float]

UNPRUNED = "unpruned"


@dataclass
class Analyst:
    """What is the same for all pictures; arguments as in [`~analysis.pictures.Picture`]."""

    segmenter: SweepSegmenter
    args: AnalysisArguments
    strangers: list[tuple[str, str]]

    def measure(self, index: int, sample: ImageSample) -> tuple[list[Row], list[dict[str, Any]]]:
        """Rows of a picture, and for the first pictures the scores of its first sentence, to be drawn.

        Args:
            index: number of the image in its split.
            sample: the image.

        Raises:
            UnreadableImageError: the picture or a mask is missing or damaged.
        """
        picture = Picture(self.segmenter, self.args, self.strangers, sample)
        rows: list[Row] = [
            (sample.image_id, picture.sentences[number].sentence_id, quantity, of, against, value)
            for number, quantity, of, against, value in measurements(picture)
        ]
        maps = [to_draw(picture, index)] if index < self.args.examples and picture.sentences else []
        return [row for row in rows if np.isfinite(row[-1])], maps


def measurements(picture: Picture) -> Iterator[Measurement]:
    """Number of the sentence, and the rest of a row."""
    if not picture.sentences:
        return
    yield from where_referents_stand(picture)
    yield from agreement(picture)
    yield from masks_of_choices(picture)


def where_referents_stand(picture: Picture) -> Iterator[Measurement]:
    """Claim 1: areas under the ROC curve for the tokens of the referent, and means inside, around and outside."""
    threshold, grid = picture.args.coverage, picture.grid
    for number, sentence in enumerate(picture.sentences):
        is_referent = picture.coverage[number] >= threshold
        ring = ring_around(is_referent, grid)
        generator = np.random.default_rng(number_of(picture.sample.image_id, sentence.sentence_id))
        elsewhere = token_coverage(moved(picture.masks[number], generator), picture.region, grid) >= threshold
        for name, of_sentences in picture.scores.items():
            score = of_sentences[number]
            sign = -1 if name in picture.similarity else 1  # of similarity the LOW end is the claim
            yield number, "auroc", name, OWN, auroc(sign * score, is_referent)
            yield number, "auroc", name, MOVED, auroc(sign * score, elsewhere)
            for place, where in (("inside", is_referent), ("ring", ring), ("outside", ~is_referent & ~ring)):
                if is_referent.any() and where.any():
                    yield number, "mean", name, place, float(score[where].mean())
        for kind, of_texts in picture.similarity.items():
            for control in (OTHER_OBJECT, OTHER_PICTURE, EMPTY):
                if not np.isnan(of_texts[control][number]).any():
                    yield number, "auroc", kind, control, auroc(-of_texts[control][number], is_referent)


def agreement(picture: Picture) -> Iterator[Measurement]:
    """Claim 2: correlations of the scores with what the language model makes of the tokens."""
    centre = distance_from_centre(picture.grid)
    given = np.column_stack([picture.of_picture["norm"], centre])
    for number in range(len(picture.sentences)):
        for signal, of_sentences in picture.signals.items():
            values = of_sentences[number]
            if np.isnan(values).any():
                continue
            for name, of_score in picture.scores.items():
                score = of_score[number]
                yield number, "spearman", name, signal, spearman(score, values)
                if of_layer(signal):
                    continue  # of single layers one number is enough
                yield number, "pearson", name, signal, pearson(score, values)
                if name != "norm":
                    yield number, "partial", name, signal, partial_spearman(score, values, given)
            yield number, "auroc", signal, OWN, auroc(values, picture.coverage[number] >= picture.args.coverage)


@torch.no_grad()
def masks_of_choices(picture: Picture) -> Iterator[Measurement]:
    """Claim 3: pixels of the masks from each choice of tokens, at each budget."""
    yield from _scored(picture, UNPRUNED, UNPRUNED, picture.unpruned_logits > 0)
    base, num_tokens = picture.segmenter.base_pruning, len(picture.tokens)
    for size in picture.args.budgets:
        budget = resolve_budget(num_tokens, *((size, None) if isinstance(size, int) else (None, size)))
        settings = language.settings_of(picture.model, base, budget)
        for name, choice in picture.choices.items():
            indices = choice.indices(budget, settings.in_raster_order)
            yield from _scored(picture, name, str(size), _masks_from(picture, indices, settings), choice)


def _masks_from(picture: Picture, indices: torch.Tensor, settings: Any) -> torch.Tensor:
    """(S, H, W) masks from the tokens at `indices` (S, K)."""
    masks, start = [], 0
    for part in picture.shared.parts:
        features = language.kept_features(picture.tokens, indices[start : start + len(part["input_ids"])])
        start += len(part["input_ids"])
        masks.append(language.mask_logits(picture.model, part, features, settings, picture.shared.for_masks) > 0)
    return torch.cat(masks)


def _scored(
    picture: Picture, name: str, against: str, masks: torch.Tensor, choice: Choice | None = None
) -> Iterator[Measurement]:
    targets = torch.stack([torch.as_tensor(mask) for mask in picture.masks]).to(masks.device)
    ignore = [sentence.ignore for sentence in picture.sentences]
    regions = None
    if any(region is not None for region in ignore):
        pairs = zip(ignore, picture.masks, strict=True)
        regions = torch.stack(
            [torch.as_tensor(np.zeros_like(mask) if region is None else region) for region, mask in pairs]
        ).to(masks.device)
    for number, score in enumerate(score_masks(masks, targets, regions)):
        if choice is not None and choice.relevance[number].isnan().any():
            continue
        yield number, "intersection", name, against, score.intersection
        yield number, "union", name, against, score.union


def to_draw(picture: Picture, index: int) -> dict[str, Any]:
    """The maps of the first sentence, and what is kept at the first budget."""
    names = ("dot", "context", "class_attention", "attention_seg", "gradient", "leave_one_out_logits")
    known = picture.scores | picture.signals
    maps = {name: known[name][0] for name in names if name in known and not np.isnan(known[name][0]).any()}
    size = picture.args.budgets[0]
    budget = resolve_budget(len(picture.tokens), *((size, None) if isinstance(size, int) else (None, size)))
    return {
        "index": index,
        "sentence_id": picture.sentences[0].sentence_id,
        "grid": list(picture.grid),
        "region": list(picture.region),
        "maps": {name: [float(value) for value in values] for name, values in maps.items()},
        "kept": picture.choices["reversed"].indices(budget, True)[0].tolist(),
    }


def strangers_of(samples: Iterable[Any], count: int = 64) -> list[tuple[str, str]]:
    """The sentences of the first pictures, with the ids of these."""
    found = []
    for sample in islice(samples, count):
        if isinstance(sample, ImageSample):
            found += [(sample.image_id, sentence.sentence) for sentence in sample.sentences]
    return found
