"""Density peak clustering of tokens, batched and without host synchronisation."""

from __future__ import annotations

import torch

from transformers_litelvlm.pruning.selection import descending


def density_peaks(tokens: torch.Tensor, num_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and members of `num_clusters` groups (DPC-KNN, with as many neighbours as groups, as SparseVLM has it).

    The density of a token is exp(-mean squared distance to its nearest, itself among them); a centre is dense and
    anything denser is far away. Of two tokens of equal density, which mutual neighbours have, the one of lower index
    is the denser: without a rule both would be peaks.

    Args:
        tokens: (B, m, C).
        num_clusters: c, at most m.

    Returns:
        Places of the centres (B, c), best first, and the group of every token (B, m), 0 to c - 1.
    """
    tokens = tokens.float()
    # Differences, not products of matrices: a distance is then the same from either side.
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[-1] ** 0.5
    density = (-distance.topk(num_clusters, dim=-1, largest=False).values.square().mean(dim=-1)).exp()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    is_denser = density.unsqueeze(1) > density.unsqueeze(2)
    is_denser |= (density.unsqueeze(1) == density.unsqueeze(2)) & (place < place.unsqueeze(1))
    farthest = distance.amax(dim=(1, 2))
    delta = distance.masked_fill(~is_denser, torch.inf).amin(dim=-1).minimum(farthest.unsqueeze(-1))
    centres = descending(density * delta)[:, :num_clusters]
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, len(place), -1))
    groups = torch.arange(num_clusters, device=tokens.device).expand_as(centres)
    return centres, to_centres.argmin(dim=-1).scatter(1, centres, groups)
