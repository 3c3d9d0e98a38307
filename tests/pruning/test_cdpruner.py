"""CDPruner against the released code, against determinants, and beyond the rank of the kernel."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import CDPruner
from transformers_litelvlm.pruning.cdpruner import greedy_map, scaled_to_one


def evidence_of(case):
    tensors, about = load("cdpruner", case)
    if about["kind"] == "tower":
        return tower_evidence(tensors, about), tensors, about
    texts = tensors["text_embeds"].expand(about["batch"], -1, -1)
    evidence = direct_evidence(
        about,
        num_texts=about["num_text_segments"],
        projected=tensors["projected_features"],
        image=tensors["image_embeds"],
        text=texts,
    )
    return evidence, tensors, about


# Case 1 is a batch of two, over which the released code scales relevance: see the next test.
@pytest.mark.parametrize("case", [0, 2, 3, 4, 5])
def test_golden_indices(case):
    evidence, tensors, about = evidence_of(case)
    selection = CDPruner().select(evidence, about["budget"])
    torch.testing.assert_close(selection.context, tensors["relevance"], atol=1e-5, rtol=1e-5)
    assert selection.indices.tolist() == tensors["kept_indices"].tolist()
    tokens = torch.nn.functional.normalize(evidence.projected_features(), dim=-1)
    assert greedy_map(tokens, selection.context, about["budget"]).tolist() == tensors["selection_order"].tolist()


def test_golden_batch_differs_in_the_scale_of_relevance_alone():
    evidence, tensors, about = evidence_of(1)
    tokens = torch.nn.functional.normalize(tensors["projected_features"], dim=-1)
    order = greedy_map(tokens, tensors["relevance"], about["budget"])
    assert order.tolist() == tensors["selection_order"].tolist()
    ours = CDPruner().select(evidence, about["budget"]).context
    torch.testing.assert_close(ours, scaled_to_one(tensors["relevance"]), atol=1e-5, rtol=1e-5)
    assert (ours - tensors["relevance"]).abs().max() > 0.01  # so the case can tell the difference


def test_each_step_takes_the_largest_determinant():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.nn.functional.normalize(torch.randn(1, 9, 5, generator=generator), dim=-1)
    relevance = torch.rand(1, 9, generator=generator)
    order = greedy_map(tokens, relevance, 4)[0].tolist()
    scaled = (relevance[0, :, None] * tokens[0]).double()
    for step in range(1, 4):
        determinants = {
            token: torch.linalg.det(scaled[[*order[:step], token]] @ scaled[[*order[:step], token]].T)
            for token in set(range(9)) - set(order[:step])
        }
        assert order[step] == max(determinants, key=determinants.get)


def test_beyond_the_rank_relevance_fills_up():
    """Nine tokens in two dimensions: after two the kernel is exhausted, and what is left follows by relevance."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(2, 9, 2, generator=generator), dim=-1)
    relevance = torch.rand(2, 9, generator=generator) + 0.1
    order = greedy_map(tokens, relevance, 9)
    for row, scores in zip(order.tolist(), relevance.tolist()):
        assert sorted(row) == list(range(9))
        assert row[2:] == sorted(row[2:], key=lambda token: -scores[token])


def test_equal_relevance_is_finite():
    evidence = RandomEvidence([1])
    evidence.image = evidence.image[:, :1].expand(-1, 30, -1)
    selection = CDPruner().select(evidence, 7)
    assert selection.context.isfinite().all() and len(set(selection.indices[0].tolist())) == 7
