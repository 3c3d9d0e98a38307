"""Cases computed by hand, without a model."""

from types import SimpleNamespace

import pytest
import torch

from transformers_litelvlm import build_pruner


def kept(norms: list[float], grid: tuple[int, int], budget: int, **options: float) -> list[int]:
    """Raster indices that `low_norm` keeps of one image whose tokens have these norms."""
    evidence = SimpleNamespace(features=torch.tensor(norms).reshape(1, -1, 1), grid=grid)
    return build_pruner("low_norm", **options).select(evidence, budget).indices[0].tolist()


def test_the_lowest_norms_stay():
    assert kept([4.0, 1.0, 9.0, 2.0, 3.0, 8.0], grid=(2, 3), budget=3) == [1, 3, 4]


def test_ties_break_by_the_lower_index():
    assert kept([1.0] * 6, grid=(2, 3), budget=2) == [0, 1]


def test_the_centre_outweighs_the_norm():
    norms = [1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0]  # of a 3 x 3 grid
    assert kept(norms, grid=(3, 3), budget=1) == [0]
    assert kept(norms, grid=(3, 3), budget=1, centre_weight=10.0) == [4]


def test_a_wrong_option_is_named():
    with pytest.raises(ValueError, match="`centre_weight` must be at least 0, got -1"):
        build_pruner("low_norm", centre_weight=-1.0)
