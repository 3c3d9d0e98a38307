"""PruMerge and PruMerge+ against the released code, and where that repeats tokens."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import assert_close, at_layer, direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import PruMergePlusPruner


def evidence_of(case):
    tensors, about = load("prumerge", case)
    if about["kind"] == "tower":
        return tower_evidence(tensors, about), tensors, about
    heads = at_layer(0, tensors["query_cls"][:, None], tensors["keys"][:, None])
    return direct_evidence(about, features=tensors["features"], **heads), tensors, about


@pytest.mark.parametrize("case", [0, 1, 2, 3, 5, 6])
def test_golden_indices_and_tokens(case):
    evidence, tensors, about = evidence_of(case)
    pruner = PruMergePlusPruner(adaptive=about["adaptive"], supplement=about["variant"] == "plus")
    selection = pruner.select(evidence, about["num_output"])
    if about["adaptive"]:
        (selection,) = selection
    assert selection.indices[:, :-1].tolist() == tensors["selected_indices"].tolist()
    assert_close(f"prumerge_plus, case {case}", selection.features, tensors["output_tokens"])
    removed = selection.weights[:, -1] > 0
    assert [row.nonzero()[:, 0].tolist() for row in removed] == tensors["complement_indices"].tolist()
    torch.testing.assert_close(selection.context, tensors["cls_attention"][:, 1:], atol=1e-6, rtol=0)


def test_heads_are_joined_before_the_softmax():
    """One head over all channels, from the keys of several heads."""
    evidence, tensors, about = evidence_of(2)
    split = {"head_query": evidence.head_query, "head_keys": evidence.head_keys}
    evidence.head_query = split["head_query"].unflatten(-1, (4, -1)).squeeze(2)
    evidence.head_keys = split["head_keys"].unflatten(-1, (4, -1)).squeeze(2).transpose(2, 3)
    selection = PruMergePlusPruner().select(evidence, about["num_output"])
    assert selection.indices[:, :-1].tolist() == tensors["selected_indices"].tolist()


def test_golden_case_with_a_token_twice():
    """As released on request; by default attention fills up."""
    evidence, tensors, about = evidence_of(4)
    released = tensors["selected_indices"][0].tolist()
    assert len(set(released)) == 63
    selection = PruMergePlusPruner(repeats=True).select(evidence, 65)
    assert selection.weights[0, :-1].argmax(dim=-1).tolist() == released  # the token that each of them grew from
    assert_close("prumerge_plus, case 4", selection.features, tensors["output_tokens"])
    assert (selection.weights[0, -1] > 0).nonzero()[:, 0].tolist() == tensors["complement_indices"][0].tolist()
    # Where they stand: the second one where none is, and the last token below it.
    again = next(i for i, token in enumerate(released) if token in released[:i])
    first, second = (max(set(range(576)) - set(released) - used) for used in (set(), {575}))
    assert (first, second) == (575, selection.indices[0, -1])
    assert selection.indices[0, :-1].tolist() == released[:again] + [first] + released[again + 1 :]

    ours = PruMergePlusPruner().select(evidence, 65).indices[0, :-1].tolist()
    (added,) = set(ours) - set(released)
    assert len(set(ours)) == 64 and set(released) < set(ours)
    ranked = selection.context[0].argsort(descending=True).tolist()
    assert added == next(token for token in ranked if token not in released)


def test_a_token_and_its_neighbour_by_hand():
    evidence = RandomEvidence([1], grid=(1, 4))
    evidence.head_query = torch.tensor([1.0, 0.0]).expand(1, 2, 1, 2)
    keys = torch.tensor([[0.0, 0.0], [3.0, 1.0], [2.0, 4.0], [1.0, 0.4], [0.0, 1.0]])
    evidence.head_keys = keys.expand(1, 2, 1, 5, 2)
    selection = PruMergePlusPruner(supplement=False, num_neighbours=1).select(evidence, 2)
    # Token 0 has the largest product; token 2 the most similar key. The last token holds all but token 0.
    attention = (keys[:, 0] / 2**0.5).softmax(0)[1:]
    assert selection.indices.tolist() == [[0, 3]]
    expected = torch.zeros(2, 4)
    expected[0, 0], expected[0, 2], expected[1, 1:] = 1.0, attention[2], attention[1:]
    torch.testing.assert_close(selection.weights[0], expected)


def test_adaptive_numbers_differ_and_do_not_depend_on_the_batch():
    """An image with three outliers and one without any; ratios beyond what the released code survives."""
    evidence = RandomEvidence([1, 1], grid=(10, 10))
    evidence.head_query = torch.ones(2, 2, 1, 1)
    keys = torch.linspace(0, 0.1, 101).expand(2, 2, 1, -1)[..., None].clone()
    keys[0, :, :, [5, 50, 95]] += 3.0
    evidence.head_keys = keys
    first, second = PruMergePlusPruner(adaptive=True, supplement=False).select(evidence, 1)
    assert first.indices.tolist() == [[94, 49, 4, 99]] and second.indices.shape == (1, 2)
    alone = PruMergePlusPruner(adaptive=True, supplement=False).select(evidence.only(0), 1)
    assert torch.equal(alone[0].features, first.features)


@pytest.mark.parametrize("count", [-1, 1.0, True])
def test_a_number_of_neighbours_out_of_range(count):
    with pytest.raises(ValueError, match="`num_neighbours` must be a non-negative integer"):
        PruMergePlusPruner(num_neighbours=count)


def test_the_adaptive_rule_repeats_nothing():
    with pytest.raises(ValueError, match="`repeats` belongs to the fixed rule"):
        PruMergePlusPruner(adaptive=True, repeats=True)
