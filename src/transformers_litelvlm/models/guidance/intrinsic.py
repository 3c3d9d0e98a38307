"""Guidance by the model itself, where its vision tower is not CLIP's: sentences and visual tokens in the space of the
language model, and the attention of the tower."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from transformers_litelvlm.models.devices import check_ids
from transformers_litelvlm.models.guidance.encoded import NO_SENTENCES, Guidance
from transformers_litelvlm.pruning.base import VisualEvidence
from transformers_litelvlm.pruning.selection import product


# Queries whose attention rows are held at once. A constant, so that memory grows linearly with the number of tokens.
QUERY_CHUNK = 64


class IntrinsicEvidence(VisualEvidence):
    """Evidence from the model's own parts, for B frames of (h, w) visual tokens each.

    The shared space is that of the language model: visual tokens are compared as they enter it with the mean of the
    embeddings of a sentence's tokens. The context score of a token is the attention that its patches receive from all
    patches of their frame in one layer of the vision tower.

    Args:
        embed_tokens: embedding table of the language model.
        features: (B, h * w, D) visual tokens as they enter the language model.
        grid: (h, w).
        sentences: in the language model's tokens.
    """

    has_class_token = False

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        features: torch.Tensor,
        grid: tuple[int, int],
        sentences: Guidance = NO_SENTENCES,
    ) -> None:
        self.features, self.grid = features, grid
        self.max_expressions = sentences.max_expressions
        self._embed_tokens, self._sentences = embed_tokens, sentences

    @abstractmethod
    def heads(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Queries and keys (B, H, S, d) of that layer, the patches of a visual token one after the other, and the
        factor of their products."""

    def image_embeds(self) -> torch.Tensor:
        return self.features

    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        check_ids("guidance_input_ids", self._sentences.input_ids, self._embed_tokens.num_embeddings)
        ids, mask = self._sentences.input_ids.to(self.features.device), self._sentences.attention_mask
        embeds = self._embed_tokens(ids).to(ids.device).float()
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        counts = mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return (embeds * mask.unsqueeze(-1)).sum(dim=2) / counts, mask.any(dim=-1)

    def projected_features(self) -> torch.Tensor:
        return self.features

    def context_scores(self) -> torch.Tensor:
        """(B, h * w) float32; over the tokens of a frame they sum to 1."""
        return self.attention_and_keys()[0]

    def attention_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`context_scores`]; keys are the mean over heads and over the patches of a token."""
        query, key, scaling = self.heads()
        patches = (self.features.shape[1], -1)
        received = attention_received(query, key, scaling).unflatten(1, patches).sum(dim=-1)
        return received, key.float().mean(dim=1).unflatten(1, patches).mean(dim=2)


def attention_received(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention that each of S tokens receives, averaged over heads and queries.

    Args:
        query, key: (B, H, S, D).
        scaling: factor of the logits.

    Returns:
        (B, S) float32; a row sums to 1. Needs memory for S times a constant number of attention weights.
    """
    query, key = query.float() * scaling, key.float().transpose(2, 3).contiguous()
    received = key.new_zeros(len(key), key.shape[-1])
    for rows in query.split(QUERY_CHUNK, dim=2):
        received += product(rows, key).softmax(dim=-1).sum(dim=(1, 2))
    return received / (query.shape[1] * query.shape[2])
