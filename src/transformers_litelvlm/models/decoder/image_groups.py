"""Images that lose visual tokens inside a decoder: those of one size and budget are selected from as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from transformers_litelvlm.models.decoder.evidence import PromptEmbeddings, PromptInDecoder
from transformers_litelvlm.models.outputs import RetainedIndices
from transformers_litelvlm.pruning.base import Selection
from transformers_litelvlm.pruning.layers import LayerEvidence, LayerPruner
from transformers_litelvlm.pruning.selection import one_hot, product


class Stage(NamedTuple):
    """What remains of M images after a decoder layer that pruned, in terms of the N_i visual tokens that they had.

    Attributes:
        indices: (M, K), or a list of M tensors (K_i,) where images differ in size or budget.
        weights: (M, K, N) or a list of (K_i, N_i), how much of each visual token is in each of them; `None` where
            nothing was merged.
    """

    indices: RetainedIndices
    weights: torch.Tensor | list[torch.Tensor] | None = None

    def of_images(self, images: Sequence[int]) -> Stage:
        """The stage of some of the images, as lists."""
        indices, weights = ([rows[i] for i in images] if rows is not None else None for rows in self)
        return Stage(indices, weights)

    def after(self, before: Stage, num_tokens: Sequence[int]) -> Stage:
        """This stage of what `before` left of M images of `num_tokens` each, in terms of all of their tokens."""
        indices = [first[own] for first, own in zip(before.indices, self.indices)]
        weights = None
        if before.weights is not None or self.weights is not None:
            both = zip(self._all_weights(map(len, before.indices)), before._all_weights(num_tokens))
            weights = [product(own, first) for own, first in both]
        is_even = isinstance(before.indices, torch.Tensor) and isinstance(self.indices, torch.Tensor)
        if is_even:
            return Stage(torch.stack(indices), None if weights is None else torch.stack(weights))
        return Stage(indices, weights)

    def _all_weights(self, num_tokens: Iterable[int]) -> list[torch.Tensor]:
        if self.weights is not None:
            return list(self.weights)
        return [one_hot(own[None], size)[0] for own, size in zip(self.indices, num_tokens)]


class ImageGroup:
    """Images of one prompt with N visual tokens each, of which K are to be left.

    Args:
        images: which, in reading order of the prompt.
        prompt: before the first layer.
        num_text: T, see [`PromptEmbeddings`].
        budget: K; images of no more tokens are kept whole.

    Attributes:
        tokens_after: layers after which tokens are dropped, and how many remain then.
        left: what is left, in terms of the N tokens.
    """

    def __init__(
        self,
        images: Sequence[int],
        prompt: PromptInDecoder,
        num_text: int,
        budget: int,
        pruner: LayerPruner,
        num_layers: int,
    ) -> None:
        self.images, self.budget = images, budget
        self.embeddings = PromptEmbeddings(prompt, images, num_text)
        visual = self.embeddings.visual
        self.num_tokens = visual.shape[1]
        self.left = Selection(torch.arange(self.num_tokens, device=visual.device).expand(len(visual), -1))
        is_cut = budget < self.num_tokens
        self.tokens_after = pruner.tokens_after(self.num_tokens, budget, num_layers) if is_cut else {}

    def prune(self, pruner: LayerPruner, evidence: LayerEvidence, in_raster_order: bool) -> Selection:
        """Let `pruner` choose; returns its selection, whose indices count the tokens there are."""
        num_left = self.tokens_after[evidence.layer]
        selection = pruner.select(evidence, self.budget).checked(
            evidence, evidence.features.shape[:2], pruner.name, num_left
        )
        selection = selection.in_raster_order() if in_raster_order else selection
        before, weights = self.left, None
        if selection.weights is not None or before.weights is not None:
            own = selection.weights
            own = one_hot(selection.indices, before.indices.shape[1]) if own is None else own
            weights = product(own, self._weights())
        self.left = Selection(before.indices.gather(1, selection.indices), weights=weights)
        return selection

    def _weights(self) -> torch.Tensor:
        left = self.left
        return one_hot(left.indices, self.num_tokens) if left.weights is None else left.weights

    @classmethod
    def of_prompt(
        cls, prompt: PromptInDecoder, num_text: int, budgets: Sequence[int], pruner: LayerPruner, num_layers: int
    ) -> list[ImageGroup]:
        """The groups of all images of a prompt, of which `budgets` tokens are to be left."""
        places: dict[tuple[int, int], list[int]] = {}
        for image, key in enumerate(zip(prompt.num_visual, budgets, strict=True)):
            places.setdefault(key, []).append(image)
        return [cls(images, prompt, num_text, budget, pruner, num_layers) for (_, budget), images in places.items()]


def stage_of(groups: Sequence[ImageGroup]) -> Stage:
    """What is left of all images."""
    if len(groups) == 1:
        return Stage(groups[0].left.indices, groups[0].left.weights)
    indices: dict[int, torch.Tensor] = {}
    weights: dict[int, torch.Tensor] = {}
    for group in groups:
        indices.update(zip(group.images, group.left.indices))
        weights.update(zip(group.images, group._weights()))
    is_merged = any(group.left.weights is not None for group in groups)
    images = range(len(indices))
    return Stage([indices[i] for i in images], [weights[i] for i in images] if is_merged else None)
