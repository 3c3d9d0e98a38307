"""TRIM: keep the visual tokens least similar to the text, and one mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import mean_over_expressions, similarity_scores
from transformers_litelvlm.pruning.selection import count_outliers, descending, free_index, merge_tokens, one_hot


@register_pruner("trim")
@dataclass(frozen=True)
class TRIMPruner(TokenPruner):
    """Negated CLIP similarity with the text, and one token that is the mean of all removed ones.

    Source: Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs"
    (TRIM, arXiv 2409.10994), similarity with the text, with the minus sign of the released code
    (github.com/FreedomIntelligence/TRIM); the rule of interquartile outliers is `adaptive`.

    The aggregated token counts: a budget K keeps K - 1 tokens and the mean of the others. It comes last; its raster
    index is the highest one that no kept token has.

    Deviations: several sentences of an image are scored by the mean of their similarities (released: one text per
    image); outliers are counted image by image (released: one threshold for the batch); output in the features' dtype
    without padding (released: float16, padded with zeros to N rows).

    Args:
        aggregate: append the mean of the removed tokens (default); `False` spends the whole budget on kept ones.
        adaptive: keep the outliers of the scores instead of a fixed number. The budget then only switches pruning on,
            and images keep different numbers of tokens. Default `False`.
    """

    needs_text: ClassVar[bool] = True
    source: ClassVar[str] = "Song et al., arXiv 2409.10994"
    context_name: ClassVar[str] = "negated mean similarity"
    similarity: ClassVar[str] = "dot"

    aggregate: bool = True
    adaptive: bool = False

    def select(self, evidence: VisualEvidence, budget: int) -> Selection | list[Selection]:
        text_embeds, is_real = evidence.text_embeds()
        similarity = similarity_scores(evidence.image_embeds(), text_embeds)
        scores = -mean_over_expressions(similarity, is_real)
        if not self.adaptive:
            return self._keep(scores, similarity, evidence.features, budget - self.aggregate)
        images = zip(scores.split(1), similarity.split(1), evidence.features.split(1))
        counts = count_outliers(scores.softmax(dim=-1))
        return [self._keep(*image, num_kept=count) for image, count in zip(images, counts)]

    def _keep(
        self, scores: torch.Tensor, similarity: torch.Tensor, features: torch.Tensor, num_kept: int
    ) -> Selection:
        num_tokens = scores.shape[-1]
        kept = descending(scores)[:, :num_kept].sort(dim=-1).values
        if not self.aggregate:
            return Selection(kept, similarity, scores)
        rows = one_hot(kept, num_tokens)
        mean = (1 - rows.sum(dim=1, keepdim=True)) / (num_tokens - num_kept)
        weights = torch.cat((rows, mean), dim=1)
        indices = torch.cat((kept, free_index(kept, num_tokens, last=True)), dim=1)
        return Selection(indices, similarity, scores, merge_tokens(weights, features), weights)
