"""CDPruner: visual tokens that are relevant to the text and different from one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import mean_over_expressions, similarity_scores
from transformers_litelvlm.pruning.selection import product


@register_pruner("cdpruner")
@dataclass(frozen=True)
class CDPruner(TokenPruner):
    """Greedy maximum of a determinantal point process whose kernel is weighted by relevance to the text.

    The kernel is L = diag(q) S diag(q): S holds the cosines of the projected tokens, and q is the negated cosine of
    the CLIP embeddings of token and text, scaled to (0, 1] per image.

    Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs", NeurIPS 2025 (arXiv 2506.10967), conditional kernel and greedy MAP inference, and the released code
    (github.com/Theia-4869/CDPruner), which negates the relevance.

    Deviations: relevance is scaled image by image (released: over the batch, so that a result depends on its
    neighbours). If the budget exceeds the numerical rank of the kernel, the remaining tokens follow by relevance
    (released: fewer tokens than asked for, silently). The mean runs over the sentences of an image (released: over
    segments of 77 tokens of one question).
    """

    needs_text: ClassVar[bool] = True
    source: ClassVar[str] = "Zhang et al., NeurIPS 2025, arXiv 2506.10967"
    context_name: ClassVar[str] = "relevance"
    similarity: ClassVar[str] = "cosine"

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        text_embeds, is_real = evidence.text_embeds()
        similarity = similarity_scores(evidence.image_embeds(), text_embeds, "cosine")
        relevance = scaled_to_one(-mean_over_expressions(similarity, is_real))
        tokens = torch.nn.functional.normalize(evidence.projected_features().float(), dim=-1)
        order = greedy_map(tokens, relevance, budget)
        return Selection(order.sort(dim=-1).values, similarity, relevance)


def scaled_to_one(scores: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """`scores` (B, N) of each image moved and scaled to lie in (0, 1]."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    return (scores - low + epsilon) / (high - low).clamp(min=epsilon)


def greedy_map(tokens: torch.Tensor, relevance: torch.Tensor, budget: int) -> torch.Tensor:
    """(B, budget) tokens in the order of choice, each with the largest gain in the determinant of the kernel.

    Args:
        tokens: (B, N, D) float32 of length one.
        relevance: (B, N) float32, positive.
    """
    scaled = relevance.unsqueeze(-1) * tokens
    kernel = product(scaled, scaled.transpose(1, 2))
    num_tokens = kernel.shape[-1]
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    # Below this a gain is rounding: what remains depends linearly on what was chosen.
    noise = num_tokens * torch.finfo(kernel.dtype).eps * gain.amax(dim=-1, keepdim=True)
    fallback = relevance.masked_fill(tokens.isnan().any(dim=-1), torch.inf)  # what is not finite is to be seen
    factors = kernel.new_zeros(len(kernel), budget, num_tokens)  # rows of the Cholesky factor, (B, K, N)
    chosen = []
    for step in range(budget):
        best, index = gain.max(dim=-1, keepdim=True)
        is_gain = best > noise
        index = torch.where(is_gain, index, fallback.argmax(dim=-1, keepdim=True))
        chosen.append(index)
        row = kernel.gather(1, index[..., None].expand(-1, -1, num_tokens))[:, 0]
        earlier = factors[:, :step]
        known = earlier.gather(2, index[:, None].expand(-1, step, -1))
        update = (row - (known * earlier).sum(dim=1)) / torch.where(is_gain, best, 1.0).sqrt()
        factors[:, step] = update = torch.where(is_gain, update, 0.0)
        gain = (gain - update.square()).scatter(1, index, -torch.inf)
        fallback = fallback.scatter(1, index, -torch.inf)
    return torch.cat(chosen, dim=1)
