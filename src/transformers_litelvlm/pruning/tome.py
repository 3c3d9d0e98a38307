"""ToMe: visual tokens merged step by step inside the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.schedules import checked_schedule, even_schedule
from transformers_litelvlm.pruning.selection import descending, merge_tokens, one_hot, product


@register_pruner("tome")
@dataclass(frozen=True)
class ToMePruner(TokenPruner):
    """Bipartite soft matching in every layer that makes the features, between attention and MLP.

    Tokens at even and odd places are matched by the cosine of their keys (mean over the heads), the most similar pairs
    are merged into means weighted by size, and the logits of a key grow by the logarithm of its size.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461), section 3: bipartite soft
    matching, tracking token size with proportional attention (equation 1).

    The schedule spreads N - K merges evenly, earlier layers taking the remainder (K = 192 of 576 in 23 layers: 17 in
    16 layers, 16 in 7). A layer merges half of its tokens at most; if that is not enough, others take more. The class
    token is never merged, and is not passed on. A merged token has the lowest raster index of its sources; reference
    order is the tower's, which is not raster order.

    Deviations: the layer that LLaVA does not read merges nothing (papers that compare with ToMe in LLaVA state no
    schedule). Sums are float32 and in a fixed order. Attention is SDPA, which takes the bias.

    Args:
        proportional_attention: default `True`, the authors' advice for models trained without merging.
        schedule: merges per layer instead of the even ones, zero for layers not named; it must give the budget.

    Raises:
        ValueError: if `schedule` is no sequence of non-negative integers; in `select` for a budget out of reach.
    """

    needs_class_token: ClassVar[bool] = True
    source: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"

    proportional_attention: bool = True
    schedule: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = self.schedule
        if given is not None:
            if not isinstance(given, (list, tuple)) or not all(
                type(merges) is int and merges >= 0 for merges in given
            ):
                raise ValueError(f"`schedule` must be None or non-negative integers, got {given!r:.80}.")
            object.__setattr__(self, "schedule", tuple(given))  # JSON knows lists only

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        rows, columns = evidence.grid
        merges = iter(self.resolve_schedule(rows * columns, budget, evidence.num_layers))
        sizes: torch.Tensor | None = None  # (B, n) how many tokens are in each
        steps: list[torch.Tensor] = []  # where each token went, (B, n), for every layer that merges

        def merge(states: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            nonlocal sizes
            num_merged = next(merges)
            if num_merged:
                steps.append(match_tokens(keys.float().mean(dim=1), num_merged))
                weights = one_hot(steps[-1], states.shape[1] - num_merged).transpose(1, 2)
                weights = weights if sizes is None else weights * sizes.unsqueeze(1)
                sizes = weights.sum(dim=-1)
                states = merge_tokens(weights / sizes.unsqueeze(-1), states)
            return states, sizes.log() if sizes is not None and self.proportional_attention else None

        features = evidence.run_layers(merge)[:, 1:]
        place = torch.arange(1 + rows * columns, device=features.device).expand(len(features), -1)
        for step in steps:
            place = step.gather(1, place)
        members = one_hot(place[:, 1:] - 1, budget).transpose(1, 2)  # the class token stays at 0
        weights = members / members.sum(dim=-1, keepdim=True)
        return Selection(members.argmax(dim=-1), features=features, weights=weights)

    def resolve_schedule(self, num_tokens: int, budget: int, num_layers: int) -> tuple[int, ...]:
        """Merges of each layer, `num_tokens - budget` in all. Raises ValueError if there are none."""
        if self.schedule is None:
            return even_schedule(num_tokens, budget, num_layers)
        return checked_schedule(self.schedule, num_tokens, budget, num_layers)

    def tokens_per_layer(
        self, num_tokens: int, budget: int, *, num_layers: int, num_tower_layers: int
    ) -> list[int] | None:
        self.resolve_schedule(num_tokens, budget, num_tower_layers)
        return [budget] * num_layers


def match_tokens(metric: torch.Tensor, num_merged: int, class_token: bool = True) -> torch.Tensor:
    """One step of bipartite soft matching: where each of the tokens goes, (B, n), among n - `num_merged`.

    Args:
        metric: (B, n, d) float32, what similarity is measured on.
        num_merged: at most half of the tokens without the class token.
        class_token: the first token is never merged and stays first.
    """
    metric = torch.nn.functional.normalize(metric, dim=-1)
    similarity = product(metric[:, ::2], metric[:, 1::2].transpose(1, 2))
    if class_token:
        similarity[:, 0] = -torch.inf
    best, partner = similarity.max(dim=-1)
    order = descending(best)
    merged, alone = order[:, :num_merged], order[:, num_merged:]
    alone = alone.sort(dim=-1).values if class_token else alone
    num_alone = alone.shape[1]
    place = torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1)
    order = order.scatter(1, alone, place[:, :num_alone])
    target = place.clone()
    target[:, ::2] = order.scatter(1, merged, num_alone + partner.gather(1, merged))
    target[:, 1::2] = num_alone + place[:, : similarity.shape[2]]
    return target
