"""Ways to choose visual tokens that are compared at equal budgets, each by a score."""

from __future__ import annotations

from typing import NamedTuple

import torch

from transformers_litelvlm.pruning.selection import fill_to_budget, top_of_each


class Choice(NamedTuple):
    """Scores by which tokens are chosen."""

    relevance: torch.Tensor  # (S, N) of each of S sentences, higher = keep
    context: torch.Tensor | None = None  # (S, N), which fills the rest of the budget
    context_share: float = 0.0  # fraction of the budget that is left to `context`

    def indices(self, budget: int, in_raster_order: bool) -> torch.Tensor:
        """(S, K) tokens; otherwise in the order of the released code of LiteLVLM."""
        num_context = int(self.context_share * budget + 0.5)
        relevance = self.relevance.float().unsqueeze(1)
        one = torch.ones(relevance.shape[:2], dtype=torch.bool, device=relevance.device)
        numbers = torch.full((len(relevance),), budget - num_context, device=relevance.device)
        marked = top_of_each(relevance, one, numbers).any(dim=1)
        filler = torch.zeros_like(relevance[:, 0]) if self.context is None else self.context.float()
        indices = fill_to_budget(marked, filler, budget)
        return indices.sort(dim=-1).values if in_raster_order else indices
