"""Scores of visual tokens. Always float32, whatever the model's dtype; higher = keep unless said otherwise."""

from __future__ import annotations

import torch

from transformers_litelvlm.pruning.selection import product


def similarity_scores(image_embeds: torch.Tensor, text_embeds: torch.Tensor, kind: str = "dot") -> torch.Tensor:
    """Similarity of every visual token with every expression (LiteLVLM, section "similarity-aware tokens").

    Args:
        image_embeds: (B, N, P) visual tokens in CLIP's shared space, not normalised.
        text_embeds: (B, T, P) expressions in the same space, not normalised.
        kind: `"dot"`, the raw product that the released code ranks by, or `"cosine"`, which removes the influence of
            the token norms (ours).

    Returns:
        (B, T, N) float32. This is CLIP's similarity as it is; LiteLVLM keeps the LOWEST.
    """
    image_embeds, text_embeds = image_embeds.float(), text_embeds.float()
    if kind == "cosine":
        image_embeds = torch.nn.functional.normalize(image_embeds, dim=-1)
        text_embeds = torch.nn.functional.normalize(text_embeds, dim=-1)
    return product(text_embeds, image_embeds.transpose(1, 2))


def surgery_scores(tokens: torch.Tensor, text_embeds: torch.Tensor, empty_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine with the expression minus cosine with the empty text (CLIP Surgery, feature surgery for one text).

    With f, t and e of length one this is the sum over the P channels of f * t - f * e: what a token shares with a text
    that says nothing is redundant, and subtracted.

    Args:
        tokens: (B, N, P) visual tokens from value-value attention.
        text_embeds: (B, T, P), empty_embeds: (B, T, P). Nothing needs to be normalised.

    Returns:
        (B, T, N) float32, higher = fits better.
    """
    tokens, texts, empty = (
        torch.nn.functional.normalize(embeds.float(), dim=-1) for embeds in (tokens, text_embeds, empty_embeds)
    )
    return product(texts - empty, tokens.transpose(1, 2))


def context_scores(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Value-weighted attention of the class token, `|| a_i v_i ||` (LiteLVLM, section "context-aware tokens").

    The heads are not split: attention is over the full width C with L2-normalised query and keys, over the N visual
    tokens alone (the class token's own key is left out), scaled by 1 / sqrt(C).

    Args:
        query: (B, C) query of the class token.
        keys: (B, N, C), values: (B, N, C) of the visual tokens.

    Returns:
        (B, N) float32, higher = keep.
    """
    query = torch.nn.functional.normalize(query.float(), dim=-1)
    keys = torch.nn.functional.normalize(keys.float(), dim=-1)
    logits = product(query, keys, equation="bc,bnc->bn") / query.shape[-1] ** 0.5
    return (logits.softmax(dim=-1).unsqueeze(-1) * values.float()).norm(dim=-1)


def class_attention_scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention that the class token pays to the visual tokens, averaged over the heads.

    The softmax runs over all keys, the class token's own included, as in the layer itself.

    Args:
        query: (B, H, d) of the class token, not scaled.
        keys: (B, H, 1+N, d), the class token's first.

    Returns:
        (B, N) float32, higher = keep.
    """
    logits = product(query.float(), keys.float(), equation="bhd,bhnd->bhn") * query.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 1:]


def mean_over_expressions(scores: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """(B, N) mean of `scores` (B, T, N) over the expressions of each image that are real, (B, T) bool."""
    total = scores.masked_fill(~is_real.unsqueeze(-1), 0.0).sum(dim=1)
    return total / is_real.sum(dim=1, keepdim=True).clamp(min=1)
