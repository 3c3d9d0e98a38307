"""PruMerge and PruMerge+: outliers of class attention, a grid, and neighbours merged into both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import class_attention_scores
from transformers_litelvlm.pruning.selection import (
    count_outliers,
    descending,
    free_index,
    gather_tokens,
    merge_tokens,
    one_hot,
    product,
)


@register_pruner("prumerge_plus")
@dataclass(frozen=True)
class PruMergePlusPruner(TokenPruner):
    """Tokens with the most class attention and evenly spaced ones, each with its neighbours merged in.

    Class attention and keys are those of the layer that reads the features, as ONE head over all channels. To every
    kept token the 32 tokens with the most similar keys (cosine) are added, weighted by their attention; a last token
    sums up the removed ones, weighted likewise.

    Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025
    (arXiv 2403.15388), adaptive token selection, token supplement and PruMerge+, and the released code
    (github.com/42Shawn/LLaVA-PruMerge): `adaptive` is its default rule, the fixed one its rule "for training".

    The last token counts: a budget K keeps K - 1 tokens, half by attention and half on the grid. The order is the
    released one: by falling attention, then the grid, then the last token. Merged tokens have the raster index of the
    token they grew from; the last one, and a token that comes again, the highest index that no other has.

    Deviations, fixed rule: no token comes twice, attention fills up (released: `repeats`). The grid has exactly the
    points it is to have, also if their number does not divide N. Adaptive rule: counted image by image; at least
    one outlier and a grid step of one (released: division by zero, or an error, outside of that); any N (released:
    576).

    Args:
        adaptive: outliers by the interquartile rule decide how many tokens are kept. The budget then only switches
            pruning on, and images keep different numbers of tokens. Default `False`.
        supplement: add the grid, which is PruMerge+ (default); `False` is PruMerge.
        num_neighbours: tokens merged into each kept one, default 32 as released, fewer if there are fewer.
        repeats: with the fixed rule, a token of the grid that is also among the best comes twice, and as many of the
            removed ones, those with the lowest index, are in no sum: as released. Default `False`.

    Raises:
        ValueError: if `num_neighbours` is not a non-negative integer, or `repeats` is asked of the adaptive rule.
    """

    needs_class_token: ClassVar[bool] = True
    official_token_order: ClassVar[str] = "reference"
    source: ClassVar[str] = "Shang et al., ICCV 2025, arXiv 2403.15388"
    context_name: ClassVar[str] = "class attention"

    adaptive: bool = False
    supplement: bool = True
    num_neighbours: int = 32
    repeats: bool = False

    def __post_init__(self) -> None:
        count = self.num_neighbours
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"`num_neighbours` must be a non-negative integer, got {count!r:.80}.")
        if self.repeats and self.adaptive:
            raise ValueError("`repeats` belongs to the fixed rule, but `adaptive` is True: leave one of them out.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection | list[Selection]:
        query, keys = evidence.class_query_and_keys(0)
        query, keys = query.flatten(1), keys.transpose(1, 2).flatten(2)
        scores = class_attention_scores(query[:, None], keys[:, None])
        metric = torch.nn.functional.normalize(keys[:, 1:].float(), dim=-1)
        if not self.adaptive:
            return self._merge(self._fixed(scores, budget - 1), scores, metric, evidence.features)
        return [
            self._merge(self._adaptive(one[0], count), *one)
            for count, *one in zip(
                count_outliers(scores), scores.split(1), metric.split(1), evidence.features.split(1)
            )
        ]

    def _fixed(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """(B, count) kept tokens."""
        num_tokens, num_grid = scores.shape[-1], count // 2 if self.supplement else 0
        place = torch.arange(num_grid, device=scores.device)
        grid = ((2 * place + 1) * num_tokens // (2 * max(num_grid, 1))).expand(len(scores), -1)
        # Points of the grid are taken anyway, so they leave the ranking.
        ranking = scores if self.repeats else scores.scatter(1, grid, -torch.inf)
        best = descending(ranking)[:, : count - num_grid]
        return torch.cat((best, grid), dim=1)

    def _adaptive(self, scores: torch.Tensor, num_outliers: int) -> torch.Tensor:
        """(1, count) kept tokens of one image with scores (1, N)."""
        num_tokens = scores.shape[-1]
        best = descending(scores)[:, :num_outliers]
        if not self.supplement:
            return best
        step = max(1, num_tokens // num_outliers // 3)
        grid = torch.arange(0, num_tokens - 1, step, device=scores.device)
        return torch.cat((best, grid[~torch.isin(grid, best)].unsqueeze(0)), dim=1)

    def _merge(
        self, kept: torch.Tensor, scores: torch.Tensor, metric: torch.Tensor, features: torch.Tensor
    ) -> Selection:
        num_kept, num_tokens = kept.shape[1], scores.shape[-1]
        rows = one_hot(kept, num_tokens)
        # Kept tokens before removed ones, both by index.
        by_use = (rows.sum(dim=1) == 0).byte().argsort(dim=1, stable=True)
        # N - K of them, those with the highest index, also if a token that comes twice leaves more.
        removed = by_use[:, num_kept:]
        others = torch.cat((kept, removed), dim=1)
        similarity = product(gather_tokens(metric, kept), gather_tokens(metric, others).transpose(1, 2))
        itself = torch.eye(num_kept, num_tokens, dtype=torch.bool, device=scores.device)
        num_nearest = min(self.num_neighbours, num_tokens - 1)
        nearest = descending(similarity.masked_fill(itself, -torch.inf))[..., :num_nearest]
        neighbours = others.unsqueeze(1).expand_as(similarity).gather(-1, nearest)
        merged = torch.zeros_like(rows).scatter_add(-1, neighbours, torch.ones_like(nearest, dtype=rows.dtype))
        weights = rows + merged * scores.unsqueeze(1)
        place = _place_repeats(kept, by_use.flip(1)) if self.repeats else kept
        if num_kept < num_tokens:
            rest = one_hot(removed, num_tokens).sum(dim=1, keepdim=True) * scores.unsqueeze(1)
            weights = torch.cat((weights, rest), dim=1)
            place = torch.cat((place, free_index(place, num_tokens, last=True)), dim=1)
        return Selection(place, context=scores, features=merge_tokens(weights, features), weights=weights)


def _place_repeats(kept: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """`kept` (B, K), where each token that came before takes the next place of `free` (B, N)."""
    is_repeated = (kept.unsqueeze(2) == kept.unsqueeze(1)).tril(-1).any(dim=2)
    which = (is_repeated.long().cumsum(dim=1) - 1).clamp(min=0)
    return torch.where(is_repeated, free.gather(1, which), kept)
