"""VisPruner against the released code, and where that crashes."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import at_layer, direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import VisPruner
from transformers_litelvlm.pruning.vispruner import remove_duplicates


@pytest.mark.parametrize("case", range(7))
def test_golden_indices(case):
    tensors, about = load("vispruner", case)
    if about["kind"] == "tower":
        evidence = tower_evidence(tensors, about)
    else:
        heads = at_layer(-1, tensors["query_cls"], tensors["keys"])
        evidence = direct_evidence(about, features=tensors["features"], **heads)
    ratio = about["important_ratio"]
    selection = VisPruner(important_ratio=ratio).select(evidence, about["budget"])
    assert selection.indices.tolist() == tensors["kept_indices"].tolist()

    order = selection.context.argsort(dim=-1, descending=True, stable=True)
    num_important = int(about["budget"] * ratio)
    assert order[:, :num_important].tolist() == tensors["important_indices"].tolist()
    diverse = remove_duplicates(evidence.features, order[:, num_important:], about["budget"] - num_important, 8)
    assert diverse.tolist() == tensors["diverse_indices"].tolist()


@pytest.mark.parametrize("budget", [1, 4, 8, 65, 66, 100])
def test_budgets_at_which_the_released_code_raises(budget):
    selection = VisPruner().select(RandomEvidence([1], grid=(24, 24)), budget)
    assert len(set(selection.indices[0].tolist())) == budget


def test_a_round_by_hand():
    """Four tokens: the first and the second are the same direction, so the first, at an even place, goes."""
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    assert remove_duplicates(features, torch.tensor([[0, 1, 2, 3]]), 3, 8).tolist() == [[2, 1, 3]]


def test_a_round_drops_all_even_places_of_an_odd_list_at_most():
    """Five tokens down to two: places 0, 2 and 4 go in one round, although 1 and 3 are the same direction."""
    features = torch.eye(5)[None].clone()
    features[0, 3] = 2 * features[0, 1]
    assert remove_duplicates(features, torch.arange(5)[None], 2, 8).tolist() == [[1, 3]]


@pytest.mark.parametrize("options", [{"important_ratio": 1.5}, {"important_ratio": True}, {"drop_per_round": 0}])
def test_options_out_of_range(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
        VisPruner(**options)
