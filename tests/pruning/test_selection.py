"""Budgets, and the random baseline."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.pruning import RandomPruner, resolve_budget


@pytest.mark.parametrize(
    "num_tokens, budget, ratio, expected",
    [
        (576, None, None, 576),
        (576, 64, None, 64),
        (576, 577, None, 576),
        (576, None, 1 / 3, 192),
        (576, None, 2 / 9, 128),
        (576, None, 1 / 9, 64),
        (576, None, 1.0, 576),
        (10, None, 0.25, 3),  # 2.5 rounds up
        (10, None, 0.001, 1),  # at least one
    ],
)
def test_resolve_budget(num_tokens, budget, ratio, expected):
    assert resolve_budget(num_tokens, budget, ratio) == expected


@pytest.mark.parametrize("budget", [0, -1, 1.5, 64.0, "64", True, [64]])
def test_a_budget_that_is_no_positive_integer(budget):
    with pytest.raises(ValueError, match="`budget` must be a positive integer") as error:
        resolve_budget(576, budget)
    assert repr(budget) in str(error.value)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, "0.5", True, float("nan")])
def test_a_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=r"`retention_ratio` must be a number in \(0, 1\]") as error:
        resolve_budget(576, retention_ratio=ratio)
    assert repr(ratio) in str(error.value)


def test_budget_and_ratio_exclude_each_other():
    with pytest.raises(ValueError, match=r"`budget` \(64\) and `retention_ratio` \(0.5\) exclude each other"):
        resolve_budget(576, 64, 0.5)


def test_random_is_uniform_over_seeds_and_nested_over_budgets():
    evidence = RandomEvidence([1])
    counts = torch.zeros(30)
    for seed in range(300):
        kept = RandomPruner(seed).select(evidence, 10).indices[0]
        counts[kept] += 1
        assert set(RandomPruner(seed).select(evidence, 4).indices[0].tolist()) <= set(kept.tolist())
    # Each token is kept 100 times on average, with a standard deviation of 8.
    assert counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("seed", [-1, 1.0, "0", True, None])
def test_a_seed_that_is_no_non_negative_integer(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
        RandomPruner(seed)
