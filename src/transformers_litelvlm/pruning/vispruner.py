"""VisPruner: important visual tokens by class attention, and diverse ones among the rest."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.selection import descending, product


@register_pruner("vispruner")
@dataclass(frozen=True)
class VisPruner(TokenPruner):
    """Part of the budget by class attention, the other part by removing duplicates among the rest.

    The remaining tokens, by falling attention, are split into those at even and odd places; the even ones that are
    most similar (cosine of the features) to any odd one are dropped, a few per round, until the budget is met.

    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
    ICCV 2025 (arXiv 2412.01818), important and diverse tokens, and the released code
    (github.com/Theia-4869/VisPruner).

    Deviations: the released code raises IndexError if the number of remaining tokens is odd, and if a round is
    to drop more than half of them; here any budget works, and a round drops what the even places hold at most. All
    else is equal. Attention is one recomputed row in float32, and ties break by place in the list.

    In a tower without a class token the attention is what a token receives from all, as the authors answered for
    Qwen2.5-VL (issue 1 of their repository), for which they released no code.

    Args:
        important_ratio: part of the budget that is chosen by attention, floor(ratio * K) tokens. Default 0.5, as in
            the paper's tables.
        drop_per_round: tokens dropped per round, default 8 as released.

    Raises:
        ValueError: for an option outside its range.
    """

    source: ClassVar[str] = "Zhang et al., ICCV 2025, arXiv 2412.01818"
    context_name: ClassVar[str] = "class attention"

    important_ratio: float = 0.5
    drop_per_round: int = 8

    def __post_init__(self) -> None:
        ratio, drop = self.important_ratio, self.drop_per_round
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:
            raise ValueError(f"`important_ratio` must be a number in [0, 1], got {ratio!r:.80}.")
        if isinstance(drop, bool) or not isinstance(drop, int) or drop < 1:
            raise ValueError(f"`drop_per_round` must be a positive integer, got {drop!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        num_important = int(budget * self.important_ratio)
        scores, _ = evidence.attention_and_keys()
        order = descending(scores)
        important, rest = order[:, :num_important], order[:, num_important:]
        diverse = remove_duplicates(evidence.features, rest, budget - num_important, self.drop_per_round)
        return Selection(torch.cat((important, diverse), dim=1).sort(dim=-1).values, context=scores)


def remove_duplicates(features: torch.Tensor, places: torch.Tensor, count: int, drop_per_round: int) -> torch.Tensor:
    """(B, count) of the tokens `places` (B, R) of `features` (B, N, C), in the order of the released list."""
    if count == 0:
        return places[:, :0]
    tokens = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = product(tokens, tokens.transpose(1, 2))
    while places.shape[1] > count:
        even, odd = places[:, ::2], places[:, 1::2]
        rows = similarity.gather(1, even[..., None].expand(-1, -1, similarity.shape[-1]))
        closest = rows.gather(2, odd[:, None].expand(-1, even.shape[1], -1)).amax(dim=-1)
        num_dropped = min(drop_per_round, places.shape[1] - count, even.shape[1])
        places = torch.cat((even.gather(1, descending(closest)[:, num_dropped:]), odd), dim=1)
    return places.masked_fill(tokens.isnan().any(-1).any(-1, keepdim=True), -1)  # of NaN no place, which is seen
