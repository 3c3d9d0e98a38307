"""The grid of `uniform`, drawn."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.pruning import UniformPruner


def picture(grid, budget):
    kept = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    kept[UniformPruner().select(RandomEvidence([1], grid=grid), budget).indices[0]] = True
    return ["".join(".x"[value] for value in row) for row in kept.view(grid).long().tolist()]


def test_a_quarter_of_a_square():
    assert picture((4, 4), 4) == ["....", ".x.x", "....", ".x.x"]


def test_a_wide_grid_and_a_budget_that_does_not_divide_it():
    assert picture((4, 6), 5) == ["......", ".x..x.", "......", ".x.x.x"]


def test_one_token_is_the_middle():
    assert picture((3, 3), 1) == ["...", ".x.", "..."]


@pytest.mark.parametrize("grid", [(1, 7), (7, 1), (5, 6), (24, 24), (3, 40)])
def test_every_budget_is_reached_and_rows_and_columns_are_evenly_used(grid):
    evidence = RandomEvidence([1], grid=grid)
    num_tokens = grid[0] * grid[1]
    for budget in range(1, num_tokens + 1):
        kept = UniformPruner().select(evidence, budget).indices[0]
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == budget
        assert 0 <= kept[0] and kept[-1] < num_tokens
        per_row = torch.bincount(kept // grid[1])
        per_row = per_row[per_row > 0]
        assert per_row.max() - per_row.min() <= 1
