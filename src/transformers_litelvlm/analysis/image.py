"""One image: scores of its visual tokens, what the language model makes of them, ways to choose among them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from transformers_litelvlm.analysis import language
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.coverage import Region, token_coverage
from transformers_litelvlm.analysis.scores import evidence_of, guidance_of, scores_without_text, similarities
from transformers_litelvlm.analysis.selections import Choice
from transformers_litelvlm.data.samples import ImageSample, ReferringSentence
from transformers_litelvlm.evaluation.measuring import masks_meant
from transformers_litelvlm.evaluation.sweeping import Part, SharedEncodings, SweepSegmenter
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.visualization import region_of


# The referent's own sentence, and the controls that show what a score depends on.
OWN, OTHER_OBJECT, OTHER_IMAGE, EMPTY, MOVED = "own", "other object", "other image", "empty", "moved mask"


@dataclass
class AnalysedImage:
    """One image with the sentences that mean something in it: S sentences, N visual tokens. Raises
    UnreadableImageError if the image or a mask is missing or damaged."""

    segmenter: SweepSegmenter  # with the model, whose weights take no gradients
    args: AnalysisArguments
    # sentences with the ids of their images, for the control with a sentence of another image
    of_others: list[tuple[str, str]]
    sample: ImageSample
    sentences: list[ReferringSentence] = field(init=False)

    def __post_init__(self) -> None:
        self.image = self.sample.load_image()
        self.model, self.processor = self.segmenter.model, self.segmenter.processor
        targets, ignored = masks_meant(list(self.sample.sentences), self.image, self.model.device)
        targets = targets if ignored is None else targets & ~ignored
        means_something = targets.flatten(1).any(dim=1)
        self.sentences = list(itertools.compress(self.sample.sentences, means_something.tolist()))
        self.targets = targets[means_something]
        self.ignored = None if ignored is None else ignored[means_something]
        self.masks = list(self.targets.cpu().numpy())
        if self.sentences:
            self.shared: SharedEncodings = self.segmenter.encode(self.image, self.sentences)
            tiles, rows, columns = self.shared.encoded.grids[0]
            if tiles != 1:
                raise ValueError(
                    f"An image is in {tiles} tiles, and an analysis needs one raster of visual tokens: set "
                    "`max_patches` of the image processor to 1, for example in processor_config.json."
                )
            self.grid = (rows, columns)

    # ---- scores -----------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> dict[str, list[str | None]]:
        """By control, what guidance reads for each sentence; `None` where there is none."""
        sentences, processor = self.sentences, self.processor
        other = [
            next((s.sentence for s in _after(sentences, number) if _is_other_object(s, sentence)), None)
            for number, sentence in enumerate(sentences)
        ]
        of_others = [text for image, text in self.of_others if image != self.sample.image_id]
        from_others = [of_others[number_of(s.sentence_id) % len(of_others)] if of_others else None for s in sentences]
        own = [sentence.sentence for sentence in sentences]
        as_written = "is_sentence" in sentences[0].details
        return {
            name: [None if text is None else processor.guidance_text(text, as_written) for text in texts]
            for name, texts in {OWN: own, OTHER_OBJECT: other, OTHER_IMAGE: from_others}.items()
        } | {EMPTY: [processor.guidance_text("")] * len(sentences)}

    @cached_property
    def similarity(self) -> dict[str, dict[str, np.ndarray]]:
        """By kind of similarity and control, (S, N); NaN where there is no such sentence."""
        unique = sorted({text for texts in self.texts.values() for text in texts if text is not None})
        with torch.no_grad():
            guidance = guidance_of(self.processor, unique)
            values = similarities(evidence_of(self.shared.encoded, guidance))
        place = {text: number for number, text in enumerate(unique)}
        result: dict[str, dict[str, np.ndarray]] = {}
        for kind, of_texts in values.items():
            array = of_texts.float().cpu().numpy()
            missing = np.full(array.shape[1], np.nan, array.dtype)
            result[kind] = {
                control: np.stack([missing if text is None else array[place[text]] for text in texts])
                for control, texts in self.texts.items()
            }
        return result

    @cached_property
    def of_image(self) -> dict[str, np.ndarray]:
        """Scores (N,) that no sentence changes."""
        with torch.no_grad():
            evidence = evidence_of(self.shared.encoded, guidance_of(self.processor, [self.sentences[0].sentence]))
            return {name: score.float().cpu().numpy() for name, score in scores_without_text(evidence).items()}

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """All scores before the language model, (S, N)."""
        own = {kind: of_texts[OWN] for kind, of_texts in self.similarity.items()}
        repeated = {n: np.broadcast_to(s, (len(self.sentences), len(s))) for n, s in self.of_image.items()}
        return own | repeated

    @cached_property
    def region(self) -> Region:
        """The part of the image that the visual tokens cover."""
        return region_of(self.processor, self.image.size, self.grid)

    @cached_property
    def coverage(self) -> np.ndarray:
        """(S, N) share of each token's cell that the mask covers."""
        return np.stack([token_coverage(mask, self.region, self.grid) for mask in self.masks])

    @cached_property
    def tokens(self) -> torch.Tensor:
        """(N, D) projected visual tokens."""
        with torch.no_grad():
            return self.shared.encoded.all_tokens()[0]

    def parts(self) -> Iterator[tuple[Part, slice]]:
        """Inputs of a few dialogues, and of which sentences they are."""
        start = 0
        for part in self.shared.parts:
            rows = slice(start, start + len(part["input_ids"]))
            start = rows.stop
            yield part, rows

    @torch.no_grad()
    def logits(self, settings: PruningSettings, features_of: Callable[[slice], Any]) -> torch.Tensor:
        """(S, H, W) mask logits from the features that each few sentences are given."""
        for_masks = self.shared.for_masks
        return torch.cat(
            [
                language.mask_logits(self.model, part, features_of(rows), settings, for_masks)
                for part, rows in self.parts()
            ]
        )

    @cached_property
    def signals(self) -> dict[str, np.ndarray]:
        """What the language model makes of each token, (S, N); NaN for sentences that leave-one-out leaves aside."""
        model = self.model
        settings = language.settings_of(model, self.segmenter.base_pruning, None)
        found: dict[str, list[np.ndarray]] = {}
        for part, rows in self.parts():
            expressions = [self.processor.expression(s.sentence) for s in self.sentences[rows]]
            ids, seg = part["input_ids"], language.seg_columns(model, part["input_ids"])
            ends = [column for [column] in seg]
            words = language.words_columns(self.processor.tokenizer, ids, expressions, ends)
            of_part: dict[str, torch.Tensor] = {}
            with torch.no_grad():
                attention = language.attention_to_tokens(model, part, self.tokens, settings, [seg, words])
            for name, layers in zip(("attention_seg", "attention_words"), attention, strict=True):
                of_part[name] = layers.mean(dim=0)
                of_part |= {f"{name}_{layer}": row for layer, row in enumerate(layers)}
            of_part["gradient"] = language.gradient_times_input(
                model, part, self.tokens, settings, self.shared.for_masks, self.targets[rows]
            )
            for name, values in of_part.items():
                found.setdefault(name, []).append(values.float().cpu().numpy())
        signals = {name: np.concatenate(values) for name, values in found.items()}
        return signals | self._left_out()

    @torch.no_grad()
    def _left_out(self) -> dict[str, np.ndarray]:
        model, base, num_tokens = self.model, self.segmenter.base_pruning, len(self.tokens)
        wanted = min(self.args.leave_one_out, len(self.sentences))
        if not wanted:
            return {}
        settings = language.settings_of(model, base, num_tokens - 1)
        changes, losses = (np.full((len(self.sentences), num_tokens), np.nan) for _ in range(2))
        places = [(part, row) for part in self.shared.parts for row in range(len(part["input_ids"]))]
        for number, (part, row) in enumerate(places[:wanted]):
            full = self.unpruned_logits[number]
            target = self.targets[number]
            portions = language.leave_one_out(model, part, self.tokens, settings, self.shared.for_masks, row)
            start = 0
            for logits in portions:
                stop = start + len(logits)
                changes[number, start:stop] = (logits - full).float().abs().mean(dim=(1, 2)).cpu().numpy()
                loss = soft_iou(full[None], target) - soft_iou(logits, target)
                losses[number, start:stop] = loss.cpu().numpy()
                start = stop
        return {"leave_one_out_logits": changes, "leave_one_out_iou": losses}

    @cached_property
    def unpruned_logits(self) -> torch.Tensor:
        """(S, H, W)."""
        settings = language.settings_of(self.model, self.segmenter.base_pruning, None)
        return self.logits(
            settings, lambda rows: language.whole_features(self.tokens.expand(rows.stop - rows.start, -1, -1))
        )

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """Selections by name; those with NaN leave sentences aside."""

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, device=self.tokens.device)

        context = tensor(self.scores["context"])
        cells = np.stack([_nearness(each, self.grid) for each in self.coverage])
        choices = {"oracle": Choice(tensor(cells)), "context": Choice(context, context, 1.0)}
        for kind in self.similarity:
            suffix = "" if kind == "dot" else f" {kind}"
            similarity = tensor(self.scores[kind])
            choices[f"reversed{suffix}"] = Choice(-similarity)
            choices[f"forward{suffix}"] = Choice(similarity)
        choices["reversed + context"] = Choice(choices["reversed"].relevance, context, 0.5)
        choices["forward + context"] = Choice(choices["forward"].relevance, context, 0.5)
        ranks = rankdata(self.scores["context"], method="ordinal", axis=-1)
        choices["oracle + context"] = Choice(tensor(self.coverage + 1e-6 * (ranks - 1)))
        if "class_attention" in self.scores:
            choices["class_attention"] = Choice(tensor(self.scores["class_attention"]))
        choices["low norm"] = Choice(tensor(-self.scores["norm"]))
        for name, signal in self.signals.items():
            if not of_layer(name):
                choices[name] = Choice(tensor(signal))
        for seed in self.args.seeds:
            generators = [
                np.random.default_rng(number_of(self.sample.image_id, s.sentence_id, seed)) for s in self.sentences
            ]
            choices[f"random#{seed}"] = Choice(tensor(np.stack([g.random(len(self.tokens)) for g in generators])))
        return choices


def of_layer(signal: str) -> bool:
    """Whether a signal of the language model is that of a single layer."""
    return signal.rsplit("_", 1)[-1].isdigit()


def soft_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(n,) intersection over union of probabilities (n, H, W), given as logits, and a mask (H, W)."""
    probabilities = logits.float().sigmoid()
    intersection = (probabilities * target).sum(dim=(1, 2))
    return intersection / (probabilities.sum(dim=(1, 2)) + target.sum() - intersection)


def number_of(*parts: object) -> int:
    """The same number for the same texts in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _nearness(coverage: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(N,) the referent's tokens by how much of them is covered, then the others, the nearest first."""
    if not coverage.any():
        return coverage
    y, x = np.divmod(np.arange(len(coverage)), grid[1])
    own = coverage > 0
    distance = np.hypot(y[:, None] - y[own], x[:, None] - x[own]).min(axis=1)
    return coverage - distance


def _after(sentences: list[ReferringSentence], number: int) -> list[ReferringSentence]:
    """The others, from the next one on."""
    return sentences[number + 1 :] + sentences[:number]


def _is_other_object(other: ReferringSentence, sentence: ReferringSentence) -> bool:
    return other.object_id != sentence.object_id if sentence.object_id else other.sentence != sentence.sentence
