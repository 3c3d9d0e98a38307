"""VisionZip: the class token, the tokens it attends to, and the others merged into a few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import similarity_scores
from transformers_litelvlm.pruning.selection import descending, free_index, gather_tokens, merge_tokens, one_hot


@register_pruner("visionzip")
@dataclass(frozen=True)
class VisionZipPruner(TokenPruner):
    """Dominant tokens by class attention, the class token itself, and contextual tokens merged from the rest.

    Attention and keys are those of the layer that makes the features. Of the tokens that are not dominant, evenly
    spaced ones become targets; every other is assigned to the target with the most similar key (mean over the heads,
    cosine), and a contextual token is its target plus the mean of what was assigned to it.

    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025
    (arXiv 2412.04467), dominant token selection and contextual token merging, and the released codes for LLaVA and
    for Qwen2.5-VL.

    A budget of K is K tokens in all, as in the paper: C contextual, the class token, and K - C - 1 dominant. Reference
    order is the released one: class token, dominant by raster, contextual. The raster index of a contextual token is
    that of its target; the class token gets the lowest index that no other has, so it leads the image in raster order
    only if the first patch is free.

    In a tower without a class token a token is dominant by the attention it receives from all, K - C are, and tokens
    come in raster order, a contextual one in the place of its target.

    Deviations: attention and keys are recomputed in float32 (released: eager attention patched into every CLIP of the
    process; for Qwen2.5-VL the whole matrix of attention beside FlashAttention); ties break by lower index. The
    released softmax for Qwen2.5-VL runs over all images of the prompt, here over one image, or one temporal patch of a
    video. Its counts are parts of N, each rounded down; their sum as the budget gives both.

    Args:
        contextual_share: part of the budget that is contextual, C = floor(share * K + 1/2), at most K - 1. Default:
            10/64, which gives the paper's 30, 20 and 10 of 192, 128 and 64. Without a class token
            C = max(floor(share * K), 1), or 0 if the share is, and the default is 1/10, as released for half of
            the tokens (1/14 for 70 %).

    Raises:
        ValueError: if `contextual_share` is not None or a number in [0, 1].
    """

    official_token_order: ClassVar[str] = "reference"
    source: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2412.04467"
    context_name: ClassVar[str] = "class attention"

    contextual_share: float | None = None

    def __post_init__(self) -> None:
        share = self.contextual_share
        is_number = isinstance(share, Real) and not isinstance(share, bool)
        if share is not None and (not is_number or not 0 <= share <= 1):
            raise ValueError(f"`contextual_share` must be None or a number in [0, 1], got {share!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        num_patches = budget - evidence.has_class_token
        num_contextual = min(self.count_contextual(budget, evidence.has_class_token), num_patches)
        scores, metric = evidence.attention_and_keys()
        order = descending(scores)
        dominant = order[:, : num_patches - num_contextual].sort(dim=-1).values
        rest = order[:, num_patches - num_contextual :].sort(dim=-1).values
        targets, contextual = contextual_weights(metric, rest, num_contextual)
        num_tokens = scores.shape[-1]
        weights = torch.cat((one_hot(dominant, num_tokens), contextual), dim=1)
        merged = merge_tokens(contextual, evidence.features)
        features = torch.cat((gather_tokens(evidence.features, dominant), merged), dim=1)
        indices = torch.cat((dominant, targets), dim=1)
        if not evidence.has_class_token:
            return Selection(indices, context=scores, features=features, weights=weights).in_raster_order()
        class_row = weights.new_zeros(len(weights), 1, num_tokens)
        return Selection(
            torch.cat((free_index(indices, num_tokens), indices), dim=1),
            context=scores,
            features=torch.cat((evidence.class_features.unsqueeze(1), features), dim=1),
            weights=torch.cat((class_row, weights), dim=1),
        )

    def count_contextual(self, budget: int, has_class_token: bool) -> int:
        """C of K, before it is cut to what there is room for."""
        share = self.contextual_share
        if has_class_token:
            return math.floor((10 / 64 if share is None else share) * budget + 0.5)
        share = 1 / 10 if share is None else share
        # The released counts of N are rounded down, which makes this the exact rule; 1e-9 is for shares like 1/14.
        return max(math.floor(share * budget + 1e-9), 1) if share else 0


def contextual_weights(metric: torch.Tensor, rest: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets (B, count) among the tokens `rest` (B, R), and what each merges, (B, count, N).

    Args:
        metric: (B, N, d) what similarity is measured on.
    """
    num_tokens = metric.shape[1]
    if count == 0:
        return rest[:, :0], one_hot(rest[:, :0], num_tokens)
    targets = rest[:, torch.arange(count, device=rest.device) * max(1, rest.shape[1] // count)]
    is_target = one_hot(targets, num_tokens)
    is_rest = is_target.new_zeros(len(rest), num_tokens).scatter(1, rest, 1.0)
    similarity = similarity_scores(metric, gather_tokens(metric, targets), "cosine")
    assigned = one_hot(similarity.argmax(dim=1), count).transpose(1, 2)
    assigned = assigned * (is_rest - is_target.sum(dim=1)).unsqueeze(1)
    return targets, is_target + assigned / assigned.sum(dim=-1, keepdim=True).clamp(min=1)
