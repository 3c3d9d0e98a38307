"""The pruning method `low_norm`, for transformers-litelvlm."""

from dataclasses import dataclass

import torch

from transformers_litelvlm.pruning import Selection, TokenPruner, VisualEvidence, register_pruner


@register_pruner("low_norm")
@dataclass(frozen=True)
class LowNormPruner(TokenPruner):
    """Keep the visual tokens of low norm, near the centre if wanted.

    Large vision transformers put what they know of the whole image into a few tokens of background, whose norm is high
    (Darcet et al., ICLR 2024). Those go first.

    Args:
        centre_weight: standard deviations of the norm that a corner of the image is worth; 0 for the norm alone.
    """

    source = "an example, from no paper"

    centre_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.centre_weight >= 0:
            raise ValueError(f"`centre_weight` must be at least 0, got {self.centre_weight!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        norms = evidence.features.float().norm(dim=-1)  # (B, N)
        deviations = (norms - norms.mean(-1, keepdim=True)) / norms.std(-1, keepdim=True).clamp_min(1e-6)
        scores = -deviations - self.centre_weight * _distances(*evidence.grid, device=norms.device)
        # Stable, so that ties break by the lower index on every device.
        order = scores.argsort(dim=-1, descending=True, stable=True)
        return Selection(order[:, :budget].sort(dim=-1).values)


def _distances(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Of each cell of a grid from its centre, (rows * columns,): 1 in a corner."""
    vertical = torch.linspace(-1, 1, rows, device=device) if rows > 1 else torch.zeros(1, device=device)
    horizontal = torch.linspace(-1, 1, columns, device=device) if columns > 1 else torch.zeros(1, device=device)
    return (vertical[:, None] ** 2 + horizontal**2).div(2).sqrt().flatten()
