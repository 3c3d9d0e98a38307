"""Positions of tokens that are kept, as vLLM gets them, are those of our models."""

from __future__ import annotations

import pytest
import torch

from transformers_litelvlm.serving.vllm.positions import (
    NUM_COLUMNS,
    Flat,
    Grids,
    Span,
    final_positions,
    first_positions,
    with_offsets,
    without_offsets,
)


def prompt(*parts: int | str) -> torch.Tensor:
    """True where a token is visual; a number stands for so many words, "v3" for a picture with three kept tokens."""
    found = [[isinstance(part, str)] * (int(part[1:]) if isinstance(part, str) else part) for part in parts]
    return torch.tensor([is_visual for of_part in found for is_visual in of_part])


def test_offsets_survive_sixteen_bits():
    offsets = torch.tensor([[0, 255, 256, 65535], [1, 2, 3, 4], [7, 8, 9, 1023]])
    embeds = torch.randn(4, 5).to(torch.bfloat16)
    rows = with_offsets(embeds, offsets)
    assert rows.shape == (4, 5 + NUM_COLUMNS)
    [left], found = without_offsets([rows])
    assert (left == embeds).all() and (found == offsets).all()


def test_flat():
    """Words, a picture of 16 tokens of which 3 are kept, words: as `position_ids="original"` has them."""
    is_visual, kept = prompt(2, "v3", 2), torch.tensor([1, 5, 15])
    first, shift = first_positions(7, [Span(2, 3, (1, 4, 4))], Flat)
    assert first[0].tolist() == [0, 1, 2, 2, 2, 18, 19] and shift == 13
    positions, delta = final_positions(first, is_visual, Flat.offsets(kept, (1, 4, 4)), 0, 16)
    assert positions.tolist() == [[0, 1, 3, 7, 17, 18, 19]] * 3
    assert delta == 13


def test_pictures_side_by_side():
    is_visual, kept = prompt(1, "v4", 1), torch.tensor([0, 3, 1, 2])
    spans = [Span(1, 2, (1, 2, 2)), Span(3, 2, (1, 2, 2))]
    first, _ = first_positions(6, spans, Flat)
    positions, delta = final_positions(first, is_visual, Flat.offsets(kept, (1, 2, 2)), 0, 4)
    assert positions[0].tolist() == [0, 1, 4, 6, 7, 9]
    assert delta == 4


@pytest.mark.parametrize("num_kept", [1, 2, 4])
@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("after", [0, 1])
def test_how_many_are_kept_is_told_from_the_positions(num_kept, cut, after):
    """It differs between requests: three pictures of 2 x 2 side by side, in two chunks, and again."""
    grid, length = (1, 2, 2), 1 + 3 * num_kept + after
    is_visual, kept = prompt(1, f"v{3 * num_kept}", after), torch.tensor([0, 3, 1, 2])[4 - num_kept :].sort().values
    spans = [Span(1 + i * num_kept, num_kept, grid) for i in range(3)]
    offsets = Flat.offsets(torch.cat([kept] * 3), grid)
    first, shift = first_positions(length, spans, Flat)
    whole, delta = final_positions(first, is_visual, offsets, 0, 4)
    expected = [0, *(1 + 4 * picture + int(place) for picture in range(3) for place in kept), *[13] * after]
    assert whole[0].tolist() == expected and delta == shift
    cut = min(cut, length)
    count = int(is_visual[:cut].sum())
    part, _ = final_positions(first, is_visual, offsets[:, :count], 0, 4)
    both, again = final_positions(part, is_visual, offsets[:, count:], cut, 4)
    assert (both == whole).all() and again == delta
    assert (final_positions(whole, is_visual, offsets, 0, 4)[0] == whole).all()


def test_a_picture_at_the_end():
    first, shift = first_positions(3, [Span(1, 2, (1, 2, 2))], Flat)
    _, delta = final_positions(first, prompt(1, "v2"), torch.zeros(3, 2).long(), 0, 4)
    assert delta == shift == 2


def test_places_in_a_picture():
    """M-RoPE: rows are time, height, width; words go on after the longer side."""
    grid, kept = (1, 2, 5), torch.tensor([3, 7])
    assert Grids.offsets(kept, grid).tolist() == [[0, 0], [0, 1], [3, 2]]
    first, shift = first_positions(5, [Span(2, 2, grid)], Grids)
    assert shift == 3
    positions, delta = final_positions(first, prompt(2, "v2", 1), Grids.offsets(kept, grid), 0)
    assert positions.tolist() == [[0, 1, 2, 2, 7], [0, 1, 2, 3, 7], [0, 1, 5, 4, 7]]
    assert delta == 3


@pytest.mark.parametrize("cut", range(1, 8))
def test_in_two_chunks_and_once_more(cut):
    """The same whether a prompt is read at once, in two parts, or again after it was thrown out."""
    is_visual = prompt(1, "v3", 2, "v2", 1)
    offsets = torch.tensor([[1, 4, 9, 0, 2]] * 3)
    first, _ = first_positions(9, [Span(1, 3, (1, 4, 4)), Span(6, 2, (1, 4, 4))], Grids)
    whole, delta = final_positions(first, is_visual, offsets, 0)
    count = int(is_visual[:cut].sum())
    part, _ = final_positions(first, is_visual, offsets[:, :count], 0)
    both, again = final_positions(part, is_visual, offsets[:, count:], cut)
    assert (both == whole).all() and again == delta
    assert (final_positions(whole, is_visual, offsets, 0)[0] == whole).all()


def test_words_alone():
    first, shift = first_positions(4, [], Flat)
    positions, delta = final_positions(first, prompt(4), torch.zeros(3, 0).long(), 0)
    assert positions.tolist() == [[0, 1, 2, 3]] * 3 and shift == delta == 0
