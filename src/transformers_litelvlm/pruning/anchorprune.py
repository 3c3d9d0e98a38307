"""AnchorPrune: first the tokens that are relevant to the text, then important ones that add something to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import mean_over_expressions, similarity_scores
from transformers_litelvlm.pruning.selection import descending, gather_tokens, product


@register_pruner("anchorprune")
@dataclass(frozen=True)
class AnchorPruner(TokenPruner):
    """A protected anchor of relevant tokens whose size the image decides, and context that is new relative to it.

    Relevance is the negated cosine of token and text in CLIP's shared space, mean over the expressions. The novelty of
    a token relative to a set S is the smallest of 1 - cosine over S. With tokens by falling relevance:

    1. The anchor has the first A tokens, and grows token by token, until it has taken up `patience` tokens whose
       novelty relative to the first A exceeds `novelty`, or until it has B. This novelty is measured in CLIP's shared
       space.
    2. Until K are kept, the token with the largest product of importance and novelty, relative to all that are kept
       so far, follows. This novelty is measured on the features and at most 1; importance is attention: the class
       token's, mean over the heads, in the layer that makes the features.

    Source: Oh and Kim, "AnchorPrune: Relevance-Anchored Contextual Expansion for Visual Token Pruning", ECCV 2026
    (arXiv 2607.07033), and its released code (github.com/MULTI-cau/AnchorPrune): rule, order and defaults.

    In a tower without a class token relevance is the cosine itself, not negated, and importance the attention that a
    token receives, both as released for Qwen2.5-VL.

    Deviations: K_min is a share of the budget, which gives the paper's 5, 10, 20 of 32, 64, 128 (released: a number
    beside the budget). On Qwen2.5-VL a token is compared with the mean of a sentence's words (released: the highest
    cosine with any word of the question). Scores are float32 and ties break by lower index.

    Args:
        novelty: what a candidate's novelty must exceed to count, in [0, 2]. Default 0.2.
        patience: how many such candidates end the anchor, at least 1. Default 3.
        min_anchor_share: A = floor(share * K + 1/2), at least 1. In [0, 1], default 5/32.
        max_anchor_share: B = floor(share * K), at least A. In [0, 1], default 0.5.

    Raises:
        ValueError: for an option outside its range.
    """

    needs_text: ClassVar[bool] = True
    source: ClassVar[str] = "Oh and Kim, ECCV 2026, arXiv 2607.07033"
    context_name: ClassVar[str] = "importance"
    similarity: ClassVar[str] = "cosine"

    novelty: float = 0.2
    patience: int = 3
    min_anchor_share: float = 5 / 32
    max_anchor_share: float = 0.5

    def __post_init__(self) -> None:
        for name, high in (("novelty", 2), ("min_anchor_share", 1), ("max_anchor_share", 1)):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= high:
                raise ValueError(f"`{name}` must be a number in [0, {high}], got {value!r:.80}.")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"`patience` must be a positive integer, got {self.patience!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        text_embeds, is_real = evidence.text_embeds()
        image_embeds = evidence.image_embeds()
        similarity = similarity_scores(image_embeds, text_embeds, "cosine")
        relevance = mean_over_expressions(-similarity if evidence.has_class_token else similarity, is_real)
        importance, _ = evidence.attention_and_keys()

        smallest, largest = self.anchor_bounds(budget)
        ranked = descending(relevance)[:, :largest]
        sizes = self.anchor_sizes(gather_tokens(_unit(image_embeds), ranked), smallest)
        kept = expand(_unit(evidence.features), importance, ranked, sizes, budget, budget - smallest)
        return Selection(descending(kept.float())[:, :budget], similarity, importance)

    def anchor_bounds(self, budget: int) -> tuple[int, int]:
        """Fewest and most tokens of the anchor, A and B."""
        smallest = min(max(1, math.floor(self.min_anchor_share * budget + 0.5)), budget)
        return smallest, max(smallest, int(self.max_anchor_share * budget))

    def anchor_sizes(self, candidates: torch.Tensor, smallest: int) -> torch.Tensor:
        """(B,) tokens in the anchor of each image.

        Args:
            candidates: (B, largest, P) of length one, by falling relevance.
            smallest: how many of them are in it in any case.
        """
        first, others = candidates[:, :smallest], candidates[:, smallest:]
        is_novel = 1 - product(others, first.transpose(1, 2)).amax(dim=-1) > self.novelty
        num_before = is_novel.cumsum(dim=-1) - is_novel.long()
        return smallest + (num_before < min(self.patience, num_before.shape[-1])).sum(dim=-1)


def expand(
    tokens: torch.Tensor,
    importance: torch.Tensor,
    ranked: torch.Tensor,
    sizes: torch.Tensor,
    budget: int,
    max_steps: int,
) -> torch.Tensor:
    """Which tokens are kept, bool (B, N), `budget` of each image.

    Args:
        tokens: (B, N, C) of length one.
        importance: (B, N), not negative.
        ranked: (B, largest) the candidates for the anchor, by falling relevance.
        sizes: (B,) how many of them are in the anchor.
        max_steps: `budget` minus the smallest anchor: images with a larger one have nothing to do in the last steps.
    """
    in_anchor = torch.arange(ranked.shape[1], device=ranked.device) < sizes.unsqueeze(1)
    kept = torch.zeros_like(importance, dtype=torch.bool).scatter(1, ranked, in_anchor)
    closest = product(tokens, gather_tokens(tokens, ranked).transpose(1, 2))
    # Zero for what is not in the anchor: the released novelty starts at 1.
    novelty = 1 - closest.masked_fill(~in_anchor.unsqueeze(1), 0.0).amax(dim=-1).clamp(min=0.0)
    for step in range(max_steps):
        score = (importance * novelty).masked_fill(kept, -torch.inf)
        index = score.argmax(dim=-1, keepdim=True)
        has_room = (sizes + step < budget).unsqueeze(1)
        kept = kept | torch.zeros_like(kept).scatter(1, index, has_room)
        distance = 1 - product(tokens, gather_tokens(tokens, index).transpose(1, 2)).squeeze(-1)
        novelty = torch.minimum(novelty, distance)
    return kept


def _unit(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(tokens.float(), dim=-1)
