"""No pruning, as a method of its own: every visual token is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner


@register_pruner("none")
@dataclass(frozen=True)
class NoPruner(TokenPruner):
    """Keeps everything. Models never call it: [`PruningConfig.resolve`] reports that pruning is off."""

    source: ClassVar[str] = "stock Transformers"

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        num_images, num_tokens = evidence.features.shape[:2]
        return Selection(torch.arange(num_tokens, device=evidence.features.device).expand(num_images, -1))

    def tokens_per_layer(
        self, num_tokens: int, budget: int, *, num_layers: int, num_tower_layers: int
    ) -> list[int] | None:
        return [num_tokens] * num_layers
