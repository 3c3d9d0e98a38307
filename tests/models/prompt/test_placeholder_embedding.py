"""Ids behind the table: what GLaMM and LISA need for image placeholders."""

import torch
from torch import nn

from transformers_litelvlm.models.prompt.placeholder_embedding import PlaceholderEmbedding


def test_rows_inside_and_outside():
    table = nn.Embedding(5, 3, padding_idx=0)
    embedding = PlaceholderEmbedding.in_place_of(table)
    assert embedding.weight is table.weight and embedding.padding_idx == 0
    ids = torch.tensor([[1, 5, 4], [7, 0, 2]])
    vectors = embedding(ids)
    inside = ids < 5
    assert torch.equal(vectors[inside], table(ids[inside]))
    assert torch.equal(vectors[~inside], torch.ones(2, 3))


def test_gradients_reach_real_tokens_only():
    embedding = PlaceholderEmbedding(4, 2)
    embedding(torch.tensor([3, 9])).sum().backward()
    assert embedding.weight.grad.tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]
