"""TRIM against the released code."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import assert_close, direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import TRIMPruner


def evidence_of(case):
    tensors, about = load("trim", case)
    if about["kind"] == "tower":
        return tower_evidence(tensors, about), tensors, about
    features = tensors["features"]
    normed = torch.nn.functional.layer_norm(
        features, features.shape[-1:], tensors["post_layernorm_weight"], tensors["post_layernorm_bias"]
    )
    image = normed @ tensors["visual_projection_weight"].T
    return direct_evidence(about, features=features, image=image, text=tensors["text_embeds"][:, None]), tensors, about


@pytest.mark.parametrize("case", range(7))
def test_golden_indices_and_tokens(case):
    evidence, tensors, about = evidence_of(case)
    if about["token_reduce_func"] == "TRIM:-1":
        (selection,) = TRIMPruner(adaptive=True).select(evidence, 1)
    else:
        selection = TRIMPruner().select(evidence, about["num_output"])
    assert selection.indices[:, :-1].tolist() == tensors["kept_indices"].tolist()
    assert_close(f"trim, case {case}", selection.features, tensors["output_tokens"])
    softmax = selection.context.softmax(dim=-1)
    torch.testing.assert_close(softmax, tensors["similarity_softmax_of_negative"], atol=1e-5, rtol=1e-4)


def test_without_the_mean_the_budget_is_spent_on_kept_tokens():
    evidence, tensors, about = evidence_of(0)
    selection = TRIMPruner(aggregate=False).select(evidence, about["num_kept"])
    assert selection.indices.tolist() == tensors["kept_indices"].tolist() and selection.features is None


def test_the_mean_has_the_highest_free_index_and_says_what_it_is_made_of():
    evidence = RandomEvidence([1], grid=(2, 2))
    evidence.text = torch.eye(8)[None, :1]
    evidence.image = torch.tensor([3.0, 1.0, 4.0, 0.0])[None, :, None] * torch.eye(8)[0]
    selection = TRIMPruner().select(evidence, 3)
    assert selection.indices.tolist() == [[1, 3, 2]]
    assert selection.weights[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0.5, 0, 0.5, 0]]
    torch.testing.assert_close(selection.features[0, 2], evidence.features[0, [0, 2]].mean(0))
    raster = selection.in_raster_order()
    assert raster.indices.tolist() == [[1, 2, 3]] and raster.weights[0, 1].tolist() == [0.5, 0, 0.5, 0]
    assert torch.equal(raster.features[0, 1], selection.features[0, 2])


def test_sentences_are_averaged():
    evidence = RandomEvidence([2], grid=(1, 3))
    evidence.text = torch.eye(8)[None, :2]
    evidence.image = torch.zeros(1, 3, 8)
    evidence.image[0, :, :2] = torch.tensor([[0.0, 8.0], [3.0, 3.0], [5.0, 5.0]])
    # Means 4, 3, 5; the lowest single similarity is that of token 0.
    assert TRIMPruner(aggregate=False).select(evidence, 1).indices.tolist() == [[1]]
