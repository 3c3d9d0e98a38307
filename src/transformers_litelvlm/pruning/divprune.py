"""DivPrune: the visual tokens that are furthest from one another."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.selection import product


@register_pruner("divprune")
@dataclass(frozen=True)
class DivPrunePruner(TokenPruner):
    """Greedy solution of the max-min diversity problem on the projected visual tokens.

    The first token is the one whose nearest neighbour is furthest away; each next one is furthest from all chosen
    before. The distance is 1 - cosine. No text takes part.

    Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025
    (arXiv 2503.02175), from the paper; there is no golden data of its code. With `coordinate_weight` above 0 it is the
    farthest-first k-center selection on features augmented with coordinates that EVTP-IV (arXiv 2508.11886) uses;
    that paper gives no code, so normalisation and weight of the coordinates are ours.

    Deviations: distances are float32 and ties break by lower index.

    Args:
        coordinate_weight: w >= 0, default 0. The distance grows by w / 2 times the squared distance of the two
            tokens on the grid, whose longer side has length 1.

    Raises:
        ValueError: if `coordinate_weight` is not a number >= 0.
    """

    source: ClassVar[str] = "Alvar et al., CVPR 2025, arXiv 2503.02175"

    coordinate_weight: float = 0.0

    def __post_init__(self) -> None:
        weight = self.coordinate_weight
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight < float("inf"):
            raise ValueError(f"`coordinate_weight` must be a number >= 0, got {weight!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        tokens = torch.nn.functional.normalize(evidence.projected_features().float(), dim=-1)
        distance = 1 - product(tokens, tokens.transpose(1, 2)).nan_to_num(nan=-torch.inf)  # the furthest: it is seen
        if self.coordinate_weight:
            distance = distance + self.coordinate_weight / 2 * _squared_grid_distance(evidence)
        return Selection(farthest_first(distance, budget).sort(dim=-1).values)


def farthest_first(distance: torch.Tensor, budget: int) -> torch.Tensor:
    """(B, budget) indices in the order of choice, from distances (B, N, N)."""
    itself = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(itself, torch.inf).amin(dim=-1)
    chosen = [nearest.argmax(dim=-1, keepdim=True)]
    nearest = torch.full_like(nearest, torch.inf)
    for _ in range(budget - 1):
        last = chosen[-1]
        nearest = torch.minimum(nearest, distance.gather(1, last[..., None].expand(-1, -1, distance.shape[-1]))[:, 0])
        nearest = nearest.scatter(1, last, -torch.inf)
        chosen.append(nearest.argmax(dim=-1, keepdim=True))
    return torch.cat(chosen, dim=1)


def _squared_grid_distance(evidence: VisualEvidence) -> torch.Tensor:
    """(N, N); the longer side of the grid has length 1."""
    rows, columns = evidence.grid
    raster = torch.arange(rows * columns, device=evidence.features.device)
    places = torch.stack((raster // columns, raster % columns), dim=-1).float() / max(rows, columns)
    return (places[:, None] - places[None]).square().sum(dim=-1)
