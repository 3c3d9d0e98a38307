"""Random selection: the baseline that every table needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner


@register_pruner("random")
@dataclass(frozen=True)
class RandomPruner(TokenPruner):
    """A uniformly random subset, the same for every image with the same number of visual tokens.

    The subset depends on `seed` and N alone: an image gets the same tokens whatever it is batched with, and subsets
    of growing budgets are nested. Average over seeds before comparing with it. The global random state is neither
    read nor changed.

    Args:
        seed: integer from 0 to 2**63 - 1, default 0.

    Raises:
        ValueError: if `seed` is anything else.
    """

    source: ClassVar[str] = "baseline"

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be an integer from 0 to 2**63 - 1, got {self.seed!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        num_images, num_tokens = evidence.features.shape[:2]
        # Drawn on the CPU, so that a seed means the same tokens on every device.
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(num_tokens, generator=generator, device="cpu")[:budget].sort().values
        return Selection(kept.to(evidence.features.device, non_blocking=True).expand(num_images, -1))
