"""DivPrune, from the paper: by brute force and by hand."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.pruning import DivPrunePruner
from transformers_litelvlm.pruning.divprune import farthest_first


def test_every_choice_is_the_farthest_from_those_before():
    evidence = RandomEvidence([1, 1])
    tokens = torch.nn.functional.normalize(evidence.projected, dim=-1)
    distance = 1 - tokens @ tokens.transpose(1, 2)
    order = farthest_first(distance, 8)
    assert DivPrunePruner().select(evidence, 8).indices.tolist() == order.sort(dim=-1).values.tolist()
    for row, chosen in zip(distance.tolist(), order.tolist()):
        nearest = [min(d for j, d in enumerate(row[i]) if j != i) for i in range(30)]
        assert chosen[0] == max(range(30), key=nearest.__getitem__)
        for step in range(1, 8):
            left = [i for i in range(30) if i not in chosen[:step]]
            assert chosen[step] == max(left, key=lambda i: min(row[i][j] for j in chosen[:step]))


def test_duplicates_come_last():
    evidence = RandomEvidence([1], grid=(1, 4))
    evidence.projected = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    assert 2 in DivPrunePruner().select(evidence, 3).indices[0].tolist()
    assert len({0, 1} & set(DivPrunePruner().select(evidence, 3).indices[0].tolist())) == 1


def test_coordinates_spread_equal_tokens_over_the_grid():
    evidence = RandomEvidence([1], grid=(3, 5))
    evidence.projected = torch.ones(1, 15, 4)
    assert DivPrunePruner().select(evidence, 4).indices.tolist() == [[0, 1, 2, 3]]  # all distances are zero
    # All nearest neighbours are equally near, so token 0; the opposite corner; the middle; the first corner left.
    assert DivPrunePruner(coordinate_weight=1.0).select(evidence, 4).indices.tolist() == [[0, 4, 7, 14]]


@pytest.mark.parametrize("weight", [-1, True, "1", float("nan"), float("inf")])
def test_a_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="`coordinate_weight` must be a number >= 0"):
        DivPrunePruner(coordinate_weight=weight)
