"""VisionZip against the released code."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import assert_close, at_layer, direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import VisionZipPruner


@pytest.mark.parametrize("case", range(6))
def test_golden_indices_and_tokens(case):
    tensors, about = load("visionzip", case)
    if about["kind"] == "tower":
        evidence = tower_evidence(tensors, about)
    else:
        states = tensors["hidden_states"]
        heads = at_layer(-1, tensors["query_cls"], tensors["keys"])
        evidence = direct_evidence(about, features=states[:, 1:], class_features=states[:, 0], **heads)
    share = about["contextual"] / about["total_tokens"]
    selection = VisionZipPruner(contextual_share=share).select(evidence, about["total_tokens"])
    num_dominant = about["dominant_including_cls"]
    assert selection.indices[:, 1:num_dominant].tolist() == tensors["dominant_indices"].tolist()
    assert selection.indices[:, num_dominant:].tolist() == tensors["contextual_target_indices"].tolist()
    assert_close(f"visionzip, case {case}", selection.features, tensors["output_tokens"])

    merged = selection.weights[:, num_dominant:].gather(
        2, tensors["merged_indices"][:, None].expand(-1, about["contextual"], -1)
    )
    assert merged.argmax(dim=1).tolist() == tensors["merged_assignment"].tolist()
    assert (merged > 0).sum(dim=1).unique().tolist() == [1]


@pytest.mark.parametrize("budget, contextual", [(192, 30), (128, 20), (64, 10), (32, 5)])
def test_the_default_share_gives_the_numbers_of_the_paper(budget, contextual):
    evidence = RandomEvidence([1], grid=(24, 24))
    weights = VisionZipPruner().select(evidence, budget).weights[0]
    assert ((weights > 0).sum(dim=-1) > 1).sum() == contextual
    assert (weights.sum(dim=-1) == 0).nonzero().tolist() == [[0]]  # the class token, from no patch


def test_the_class_token_has_the_lowest_free_index():
    evidence = RandomEvidence([1], grid=(1, 5))
    evidence.head_query = torch.ones(1, 2, 1, 1)
    evidence.head_keys = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])[None, None, None, :, None].expand(
        1, 2, -1, -1, -1
    )
    selection = VisionZipPruner(contextual_share=0.0).select(evidence, 3)
    assert selection.indices.tolist() == [[1, 0, 2]]
    assert torch.equal(selection.features[0, 0], evidence.class_features[0])
    assert selection.in_raster_order().indices.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("budget", [1, 2, 7, 29])
def test_without_a_class_token_all_are_visual_tokens_in_raster_order(share, budget):
    def chosen(evidence):
        evidence.has_class_token = False
        return VisionZipPruner(contextual_share=share).select(evidence, budget)

    together = chosen(RandomEvidence([1, 1, 1]))
    assert together.indices.shape == (3, budget) and (together.indices.diff(dim=-1) > 0).all()
    assert (together.weights.gather(2, together.indices[:, :, None]) == 1).all()  # of itself, a token is all there
    for image in range(3):
        alone = chosen(RandomEvidence([1, 1, 1]).only(image))
        assert alone.indices.tolist() == together.indices[image : image + 1].tolist()
        torch.testing.assert_close(alone.features, together.features[image : image + 1])
    assert chosen(RandomEvidence([1, 1, 1]).to("meta")).features.shape == (3, budget, 8)


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "half"])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match="`contextual_share` must be None or a number"):
        VisionZipPruner(contextual_share=share)
