"""VisionZip: the class token, the tokens it attends to, and the others merged into a few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence, register_pruner
from transformers_litelvlm.pruning.scoring import class_attention_scores
from transformers_litelvlm.pruning.selection import descending, free_index, gather_tokens, merge_tokens, one_hot


@register_pruner("visionzip")
@dataclass(frozen=True)
class VisionZipPruner(TokenPruner):
    """Dominant tokens by class attention, the class token itself, and contextual tokens merged from the rest.

    Attention and keys are those of the layer that makes the features. Of the tokens that are not dominant, evenly
    spaced ones become targets; every other is assigned to the target with the most similar key (mean over the heads,
    cosine), and a contextual token is its target plus the mean of what was assigned to it.

    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025
    (arXiv 2412.04467), dominant token selection and contextual token merging, and the released code for LLaVA.

    A budget of K is K tokens in all, as in the paper: C contextual, the class token, and K - C - 1 dominant. Reference
    order is the released one: class token, dominant by raster, contextual. The raster index of a contextual token is
    that of its target; the class token gets the lowest index that no other has, so it leads the image in raster order
    only where the first patch is free.

    Deviations: one attention row and the keys are recomputed in float32 (released: eager attention patched into every
    CLIP of the process); ties break by lower index. The variant for Qwen2.5-VL is not here.

    Args:
        contextual_share: part of the budget that is contextual, C = floor(share * K + 1/2), at most K - 1. Default
            10/64, which gives the paper's 30, 20 and 10 of 192, 128 and 64.

    Raises:
        ValueError: if `contextual_share` is not a number in [0, 1].
    """

    needs_class_token: ClassVar[bool] = True
    official_token_order: ClassVar[str] = "reference"
    source: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2412.04467"

    contextual_share: float = 10 / 64

    def __post_init__(self) -> None:
        share = self.contextual_share
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise ValueError(f"`contextual_share` must be a number in [0, 1], got {share!r}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        num_contextual = min(math.floor(self.contextual_share * budget + 0.5), budget - 1)
        num_dominant = budget - num_contextual - 1
        query, keys = evidence.class_query_and_keys(-1)
        scores = class_attention_scores(query, keys)
        num_tokens = scores.shape[-1]

        order = descending(scores)
        dominant = order[:, :num_dominant].sort(dim=-1).values
        rest = order[:, num_dominant:].sort(dim=-1).values
        metric = keys[:, :, 1:].float().mean(dim=1)
        targets, contextual = contextual_weights(metric, rest, num_contextual)

        class_row = contextual.new_zeros(len(scores), 1, num_tokens)
        weights = torch.cat((class_row, one_hot(dominant, num_tokens), contextual), dim=1)
        merged = merge_tokens(weights[:, 1:], evidence.features)
        patches = torch.cat((dominant, targets), dim=1)
        return Selection(
            torch.cat((free_index(patches, num_tokens), patches), dim=1),
            context=scores,
            features=torch.cat((evidence.class_features.unsqueeze(1), merged), dim=1),
            weights=weights,
        )


def contextual_weights(metric: torch.Tensor, rest: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets (B, count) among the tokens `rest` (B, R), and what each merges, (B, count, N).

    Args:
        metric: (B, N, d) what similarity is measured on.
    """
    num_tokens = metric.shape[1]
    if count == 0:
        return rest[:, :0], one_hot(rest[:, :0], num_tokens)
    targets = rest[:, torch.arange(count, device=rest.device) * max(1, rest.shape[1] // count)]
    is_target, is_rest = one_hot(targets, num_tokens), one_hot(rest, num_tokens).sum(dim=1)
    metric = torch.nn.functional.normalize(metric, dim=-1)
    similarity = gather_tokens(metric, targets) @ metric.transpose(1, 2)
    assigned = one_hot(similarity.argmax(dim=1), count).transpose(1, 2)
    assigned = assigned * (is_rest - is_target.sum(dim=1)).unsqueeze(1)
    return targets, is_target + assigned / assigned.sum(dim=-1, keepdim=True).clamp(min=1)
