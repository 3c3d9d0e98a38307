"""Uniform selection: a regular grid, whatever the picture shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner


@register_pruner("uniform")
@dataclass(frozen=True)
class UniformPruner(TokenPruner):
    """Evenly spaced visual tokens, the same for every image with the same grid.

    Rows are chosen so that steps down and across are as equal as the grid allows; the budget is spread evenly over
    the chosen rows, and rows and tokens sit in the middle of the part of the grid that they stand for. Any budget is
    reached exactly.

    Source: no paper. Tables of pruning methods know it as uniform or strided sampling, usually as every (N/K)-th token
    in raster order; that favours columns of the picture wherever the step and the width share a divisor.
    """

    source: ClassVar[str] = "baseline"

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        rows, columns = evidence.grid
        num_rows = round((budget * rows / columns) ** 0.5)
        num_rows = min(max(num_rows, -(-budget // columns)), rows, budget)

        token = torch.arange(budget, device=evidence.features.device)
        row = ((token + 1) * num_rows - 1) // budget  # of the chosen rows; the budget is spread evenly over them
        first, end = row * budget // num_rows, (row + 1) * budget // num_rows
        column = (2 * (token - first) + 1) * columns // (2 * (end - first))
        kept = (2 * row + 1) * rows // (2 * num_rows) * columns + column
        return Selection(kept.expand(len(evidence.features), -1))
