"""FasterVLM against the released code of VisPruner with `important_ratio` 1, and by hand."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import at_layer, direct_evidence, load, tower_evidence
from transformers_litelvlm.pruning import ClassAttentionPruner


def test_golden_indices():
    tensors, about = load("vispruner", 6)
    evidence = direct_evidence(about, **at_layer(-1, tensors["query_cls"], tensors["keys"]))
    selection = ClassAttentionPruner().select(evidence, about["budget"])
    assert selection.indices.tolist() == tensors["kept_indices"].tolist()
    torch.testing.assert_close(selection.context, tensors["cls_attention"][..., 1:].mean(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_scores_of_a_whole_tower(attention):
    """Attention of the layer that makes the features, recomputed, is that of the tower."""
    tensors, about = load("vispruner", 5)
    selection = ClassAttentionPruner().select(tower_evidence(tensors, about, attention), about["budget"])
    torch.testing.assert_close(selection.context, tensors["mean_attention"], atol=1e-6, rtol=0)


def test_the_keys_of_the_class_token_take_part_and_heads_are_averaged_after_the_softmax():
    """Without the class token's key the first head would prefer token 0, and token 1 would lose."""
    evidence = RandomEvidence([1], grid=(1, 2))
    evidence.head_query = torch.tensor([[[[1.0], [1.0]]] * 2])
    keys = torch.tensor([[[6.0], [1.0], [0.0]], [[-9.0], [0.0], [0.5]]])
    evidence.head_keys = keys[None, None].expand(1, 2, -1, -1, -1)
    # Head 0 gives nearly all to the class token (key 6); head 1 has 0.38 against 0.62.
    selection = ClassAttentionPruner().select(evidence, 1)
    assert selection.indices.tolist() == [[1]]
    torch.testing.assert_close(selection.context[0, 1], torch.tensor(0.3124), atol=1e-4, rtol=0)
