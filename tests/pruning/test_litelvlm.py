"""LiteLVLM by hand: which tokens, in which order, and what is not computed."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.pruning import LiteLVLMPruner


def by_hand(similarity, context, evidence=None):
    """Evidence whose similarity is exactly `similarity` (B, T, N) and whose context ranks tokens like `context`."""
    similarity, context = torch.tensor(similarity), torch.tensor(context)
    batch, num_texts, num_tokens = similarity.shape
    made = RandomEvidence([num_texts] * batch, grid=(1, num_tokens), width=num_texts)
    made.image, made.text = similarity.transpose(1, 2), torch.eye(num_texts).expand(batch, -1, -1)
    # Equal keys: attention is uniform, and the norm of the value decides.
    made.keys = torch.ones_like(made.keys)
    made.values = context[..., None] * torch.eye(num_texts)[0]
    return made


SIMILARITY = [[[0.5, 0.1, 0.9, 0.2, 0.7, 0.3], [0.9, 0.2, 0.1, 0.8, 0.7, 0.6]]]
CONTEXT = [[0.1, 0.2, 0.3, 0.4, 0.6, 0.5]]


def test_one_sentence_keeps_the_lowest_similarities_ascending_and_never_asks_for_context():
    evidence = by_hand([SIMILARITY[0][:1]], CONTEXT)
    selection = LiteLVLMPruner().select(evidence, 3)
    assert selection.indices.tolist() == [[1, 3, 5]]
    assert selection.context is None and "context" not in evidence.asked
    assert torch.equal(selection.similarity, torch.tensor([SIMILARITY[0][:1]]))


def test_two_sentences_unite_and_context_fills_in_front():
    # m = 5 // 2 = 2 each: {1, 3} and {2, 1}; union {1, 2, 3}; context fills with 4 and 5, by falling score.
    assert LiteLVLMPruner().select(by_hand(SIMILARITY, CONTEXT), 5).indices.tolist() == [[4, 5, 1, 2, 3]]


@pytest.mark.parametrize(
    "share, expected",
    [
        (None, [1, 3]),
        (0.0, [1, 3]),
        (0.5, [4, 1]),  # one for context, one for similarity
        (1.0, [4, 5]),  # context alone
    ],
)
def test_context_share_of_one_sentence(share, expected):
    evidence = by_hand([SIMILARITY[0][:1]], CONTEXT)
    assert LiteLVLMPruner(context_share=share).select(evidence, 2).indices.tolist() == [expected]


def test_forward_ranking_keeps_the_highest():
    evidence = by_hand([SIMILARITY[0][:1]], CONTEXT)
    assert LiteLVLMPruner(ranking="forward").select(evidence, 3).indices.tolist() == [[0, 2, 4]]


def test_ties_break_by_lower_index():
    evidence = by_hand([[[0.5] * 6]], [[0.5] * 6])
    assert LiteLVLMPruner().select(evidence, 3).indices.tolist() == [[0, 1, 2]]
    assert LiteLVLMPruner(context_share=1.0).select(evidence, 3).indices.tolist() == [[0, 1, 2]]


def test_more_sentences_than_budget_leave_context_alone():
    evidence = by_hand([[SIMILARITY[0][0], SIMILARITY[0][1], SIMILARITY[0][0]]], CONTEXT)
    assert LiteLVLMPruner().select(evidence, 2).indices.tolist() == [[4, 5]]


def test_cosine_ignores_the_length_of_a_token():
    evidence = by_hand([[[0.4, 0.6], [0.3, 0.8]]], [[1.0, 2.0]])
    evidence.text, evidence.is_real, evidence.max_expressions = evidence.text[:, :1], evidence.is_real[:, :1], 1
    # Products 0.4 < 0.6; cosines 0.4 / 0.5 = 0.8 > 0.6 / 1.0.
    assert LiteLVLMPruner().select(evidence, 1).indices.tolist() == [[0]]
    assert LiteLVLMPruner(similarity="cosine").select(evidence, 1).indices.tolist() == [[1]]


@pytest.mark.parametrize("ranking, expected", [("forward", [[0]]), ("reversed", [[1]])])
def test_surgery_subtracts_what_a_text_without_words_has_too(ranking, expected):
    evidence = by_hand([[[0.0, 0.0], [0.0, 0.0]]], [[1.0, 2.0]])
    evidence.max_expressions, evidence.is_real = 1, evidence.is_real[:, :1]
    # Cosines with the text (3, 4) / 5: 0.6, 0.8; with the empty text (0, 1): 0, 1. Lengths do not matter.
    evidence.corrected, evidence.text, evidence.empty = (
        torch.tensor(rows)[None] for rows in ([[2.0, 0.0], [0.0, 9.0]], [[6.0, 8.0]], [[0.0, 0.5]])
    )
    selection = LiteLVLMPruner(similarity="surgery", ranking=ranking).select(evidence, 1)
    torch.testing.assert_close(selection.similarity, torch.tensor([[[0.6, -0.2]]]))
    assert selection.indices.tolist() == expected and "image" not in evidence.asked


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_surgery_is_not_computed_unless_asked_for(similarity):
    evidence = RandomEvidence([2])
    LiteLVLMPruner(similarity=similarity).select(evidence, 4)
    assert "surgery" not in evidence.asked


@pytest.mark.parametrize(
    "options, message",
    [
        ({"similarity": "l2"}, "`similarity` must be 'dot', 'cosine' or 'surgery', got 'l2'"),
        ({"ranking": "up"}, "`ranking` must be 'reversed' or 'forward', got 'up'"),
        ({"context_share": 1.5}, r"`context_share` must be None or a number in \[0, 1\], got 1.5"),
        ({"context_share": True}, "`context_share`"),
        ({"context_share": "half"}, "`context_share`"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LiteLVLMPruner(**options)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [[1, 3], [1, 2]]),  # token 1 by both
        ({"context_share": 0.5}, [[1], [2]]),
        ({"context_share": 1.0}, [[], []]),
        ({"ranking": "forward"}, [[2, 4], [0, 3]]),
    ],
)
def test_which_expression_chose_which_token(options, expected):
    pruner = LiteLVLMPruner(**options)
    selection = pruner.select(by_hand(SIMILARITY, CONTEXT), 4)
    chosen = pruner.chosen_by(selection.similarity, torch.ones(1, 2, dtype=torch.bool), 4)
    assert [row.nonzero().flatten().tolist() for row in chosen[0]] == expected
    kept = set(selection.indices[0].tolist())
    assert {index for row in expected for index in row} <= kept and len(kept) == 4
    padded = pruner.chosen_by(selection.similarity, torch.tensor([[True, False]]), 4)
    assert not padded[0, 1].any() and padded[0, 0].sum() == (4 - int(4 * options.get("context_share", 0) + 0.5))
