"""Token embeddings that accept the id of an image placeholder for which the table has no row."""

from __future__ import annotations

import torch
from torch import nn


class PlaceholderEmbedding(nn.Embedding):
    """[`~torch.nn.Embedding`] that gives ids beyond its table a constant vector instead of an error.

    GLaMM and LISA never had a token for images: prompts need an id for the placeholder, and the first free one lies
    outside the table. Its vector is overwritten by a visual token; ones are no vector that training produces, so a
    placeholder is still recognised by it.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        outside = input >= self.num_embeddings
        return super().forward(input.masked_fill(outside, 0)).masked_fill(outside.unsqueeze(-1), 1.0)

    @classmethod
    def in_place_of(cls, embedding: nn.Embedding) -> PlaceholderEmbedding:
        """The same table: both have one parameter."""
        new = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        new.weight = embedding.weight
        return new
