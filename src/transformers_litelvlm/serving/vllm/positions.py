"""Positions of the unpruned prompt for the tokens that are kept, in vLLM's three rows (time, height, width).

vLLM lays out the positions of a prompt before it encodes a picture, so before it is known which visual tokens are
kept. Text gets its final positions then. A visual token gets that of the first one of its picture, and brings along,
as further columns of its embedding, how far from there it is. This is how vLLM does it for pruned videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from transformers_litelvlm.models.guidance.encoded import Grid


# A row of an embedding has two columns for each of the three axes: bfloat16 has whole numbers up to 256 only.
NUM_COLUMNS = 6
_BASE = 256


class Span(NamedTuple):
    """The placeholders of a picture in a prompt."""

    start: int
    length: int  # after pruning
    grid: Grid  # before pruning


class Flat:
    """Positions of LLaVA: visual tokens count on like words, and pictures may stand side by side."""

    @staticmethod
    def size(grid: Grid) -> int:
        """By how much the positions after a picture are further on than those before it."""
        return math.prod(grid)

    @staticmethod
    def offsets(indices: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(3, K) of the visual tokens with raster `indices` (K,), from the first position of the picture."""
        return indices.expand(3, -1)


class Grids(Flat):
    """M-RoPE of Qwen's models: a visual token is at its place in the picture."""

    @staticmethod
    def size(grid: Grid) -> int:
        return max(grid)

    @staticmethod
    def offsets(indices: torch.Tensor, grid: Grid) -> torch.Tensor:
        _, height, width = grid
        return torch.stack([indices // (height * width), indices // width % height, indices % width])


def with_offsets(embeds: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Embeddings (K, D) with the `offsets` (3, K) of their positions in [`NUM_COLUMNS`] further columns."""
    digits = torch.cat([offsets // _BASE, offsets % _BASE]).T
    return torch.cat([embeds, digits.to(embeds)], dim=-1)


def without_offsets(embeds: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What [`with_offsets`] put together: the embeddings (K_i, D), and the offsets (3, sum of K_i) of all of them."""
    digits = torch.cat([rows[:, -NUM_COLUMNS:] for rows in embeds]).T.long()
    return [rows[:, :-NUM_COLUMNS] for rows in embeds], digits[:3] * _BASE + digits[3:]


def first_positions(length: int, spans: Sequence[Span], kind: type[Flat]) -> tuple[torch.Tensor, int]:
    """Positions (3, length) of a prompt whose visual tokens are not known yet, each at the first of its picture; and
    by how much tokens after the prompt are further on than their index."""
    positions, shift = torch.arange(length), 0
    for start, num_kept, grid in sorted(spans):
        positions[start : start + num_kept] = start + shift
        positions[start + num_kept :] += kind.size(grid) - num_kept
        shift += kind.size(grid) - num_kept
    return positions.expand(3, -1).contiguous(), shift


def final_positions(
    positions: torch.Tensor, is_visual: torch.Tensor, offsets: torch.Tensor, num_computed: int, size: int | None = None
) -> tuple[torch.Tensor, int]:
    """Positions with those of the next visual tokens, whose embeddings are there now.

    A request may come here twice with the same tokens, after vLLM threw its blocks away. So the first position of a
    picture is told from the text before it, not from its own tokens.

    Args:
        positions: (3, L) of [`first_positions`] or of this function.
        is_visual: (L,) bool.
        offsets: (3, n) of the first n visual tokens from `num_computed` on.
        size: of every picture, where pictures of one size may stand side by side, each with as many placeholders;
            `None` where there is always text between them.

    Returns:
        The positions, and by how much tokens after the prompt are further on than their index.
    """
    places = is_visual.nonzero().squeeze(-1)
    length = len(is_visual)
    if not len(places):
        return positions, int(positions[0, -1]) + 1 - length
    is_first = torch.ones_like(places, dtype=torch.bool)
    is_first[1:] = places[1:] != places[:-1] + 1
    run, rank = is_first.cumsum(0) - 1, torch.arange(len(places), device=places.device)
    starts = places[is_first]
    before = torch.where(starts > 0, positions[0, starts - 1] + 1, 0)
    firsts = before[run]
    if size is not None:
        # The last token of a run is in its last picture, now and before its position was final.
        lasts = places[torch.cat([is_first[1:], is_first.new_ones(1)])]
        num_pictures = (positions[0, lasts] - before) // size + 1
        num_kept = (lasts - starts + 1) // num_pictures
        firsts += (rank - rank[is_first][run]) // num_kept[run] * size
    after = int(firsts[-1]) + (size or 0) if is_visual[-1] else int(positions[0, -1]) + 1
    now = (places >= num_computed).nonzero().squeeze(-1)[: offsets.shape[1]]
    positions = positions.clone()
    positions[:, places[now]] = firsts[now] + offsets.to(positions)
    return positions, after - length
