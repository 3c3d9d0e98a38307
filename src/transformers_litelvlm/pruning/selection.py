"""From scores and a budget to the indices that are kept: pure tensors, batched, without host synchronisation."""

from __future__ import annotations

import math
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any

import torch


def check_budget(budget: Any) -> int:
    """Return `budget` as an int, or raise ValueError if it is not a positive integer."""
    if isinstance(budget, bool) or not isinstance(budget, Integral) or budget <= 0:
        raise ValueError(
            f"`budget` must be a positive integer, the number of visual tokens kept per image, got {budget!r:.80}."
        )
    return int(budget)


def check_retention_ratio(retention_ratio: Any) -> float:
    """Return `retention_ratio` as a float, or raise ValueError if it is not a number in (0, 1]."""
    is_number = isinstance(retention_ratio, Real) and not isinstance(retention_ratio, bool)
    if not is_number or not 0 < retention_ratio <= 1:
        raise ValueError(
            "`retention_ratio` must be a number in (0, 1], the fraction of visual tokens that is KEPT, "
            f"got {retention_ratio!r:.80}."
        )
    return float(retention_ratio)


def resolve_budget(num_tokens: int, budget: int | None = None, retention_ratio: float | None = None) -> int:
    """The one place that turns a budget or a ratio into a number of visual tokens.

    Args:
        num_tokens: N, the number of visual tokens of the image.
        budget: tokens to keep. More than N means all N.
        retention_ratio: fraction to keep; `floor(ratio * N + 1/2)` tokens, but at least one.

    Returns:
        K with 1 <= K <= N. N if neither is given.

    Raises:
        ValueError: if both are given, or one of them is out of range.
    """
    if budget is not None and retention_ratio is not None:
        raise ValueError(
            f"`budget` ({budget!r:.80}) and `retention_ratio` ({retention_ratio!r:.80}) exclude "
            "each other: give one of them."
        )
    if budget is not None:
        return min(check_budget(budget), num_tokens)
    if retention_ratio is not None:
        return max(1, math.floor(check_retention_ratio(retention_ratio) * num_tokens + 0.5))
    return num_tokens


def descending(scores: torch.Tensor) -> torch.Tensor:
    """Indices of the last dimension by falling score; equal scores keep the order of their index."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def top_of_each(scores: torch.Tensor, is_real: torch.Tensor, num_per_image: torch.Tensor) -> torch.Tensor:
    """The tokens that each expression of an image ranks highest.

    Args:
        scores: (B, T, N), higher = keep.
        is_real: (B, T) bool, False for padding among the expressions.
        num_per_image: (B,) long, how many tokens one expression of the image may mark.

    Returns:
        (B, T, N) bool; nothing is marked for padding.
    """
    order = descending(scores)
    rank = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, rank)
    return (rank < num_per_image[:, None, None]) & is_real[:, :, None]


def fill_to_budget(marked: torch.Tensor, filler: torch.Tensor, budget: int) -> torch.Tensor:
    """Keep every marked token and fill the rest of the budget with the highest `filler` scores.

    Args:
        marked: (B, N) bool with at most `budget` marks per row.
        filler: (B, N) float32, higher = keep.
        budget: K.

    Returns:
        (B, K) indices in the released order: the filling tokens by falling score, then the marked ones ascending.
    """
    first = descending(filler.masked_fill(marked, torch.inf))[:, :budget]
    # The stable sort put the marked tokens first and ascending; the released order wants them last.
    turn = torch.arange(budget, device=marked.device) + marked.sum(dim=-1, keepdim=True)
    return first.gather(-1, turn % budget)


def product(*factors: torch.Tensor, equation: str | None = None) -> torch.Tensor:
    """Matrix product or `torch.einsum` in the dtype of the factors, since autocast's is too coarse to rank by."""
    kind = factors[0].device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if is_on else nullcontext():
        return torch.matmul(*factors) if equation is None else torch.einsum(equation, *factors)


def gather_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows (B, K, C) of `tokens` (B, N, C) at `indices` (B, K)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def one_hot(indices: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Rows (B, K, N) float32 with a one at `indices` (B, K)."""
    return (indices.unsqueeze(-1) == torch.arange(num_tokens, device=indices.device)).float()


def merge_tokens(weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Weighted sums (B, K, C) of `tokens` (B, N, C), in their dtype, summed in float32; `weights` is (B, K, N)."""
    return product(weights, tokens.float()).to(tokens.dtype)


def free_index(taken: torch.Tensor, num_tokens: int, last: bool = False) -> torch.Tensor:
    """The lowest (or `last`: highest) raster index that is not among `taken` (B, K), (B, 1); needs K < N.

    A place for a token that stands for the whole image, so that no two tokens share a position.
    """
    is_free = one_hot(taken, num_tokens).sum(dim=1) == 0
    if last:
        return num_tokens - 1 - is_free.flip(-1).byte().argmax(dim=-1, keepdim=True)
    return is_free.byte().argmax(dim=-1, keepdim=True)


def count_outliers(scores: torch.Tensor) -> list[int]:
    """How many scores (B, N) of each image lie above its third quartile by more than 1.5 interquartile ranges.

    The numbers decide sizes, so this reads them back from the device. Never less than one.
    """
    quartiles = torch.tensor([0.25, 0.75], device=scores.device)
    low, high = scores.float().quantile(quartiles, dim=-1)
    bound = high + 1.5 * (high - low)
    return (scores > bound[:, None]).sum(dim=-1).clamp(min=1).tolist()
