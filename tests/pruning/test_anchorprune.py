"""AnchorPrune by hand, and against its rule in plain loops."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.pruning import AnchorPruner


def by_the_rule(evidence, image, budget, smallest, largest, novelty=0.2, patience=3):
    """Anchor and kept tokens of one image, float64, token by token."""
    unit = lambda rows: [row.double() / row.double().norm() for row in rows]  # noqa: E731
    tokens, features = unit(evidence.image[image]), unit(evidence.features[image])
    texts = unit(evidence.text[image][evidence.is_real[image]])
    sign = -1 if evidence.has_class_token else 1
    relevance = [sign * sum(token @ text for text in texts) / len(texts) for token in tokens]
    ranked = sorted(range(len(tokens)), key=lambda index: -relevance[index])

    anchor, num_novel = ranked[:smallest], 0
    while len(anchor) < largest and num_novel < patience:
        index = ranked[len(anchor)]
        num_novel += min(1 - tokens[index] @ tokens[one] for one in ranked[:smallest]) > novelty
        anchor = [*anchor, index]

    query, keys = evidence.head_query[image, 0].double(), evidence.head_keys[image, 0].double()
    heads = [(key @ one / len(one) ** 0.5).softmax(0) for one, key in zip(query, keys)]
    attention = (sum(heads) / len(heads))[1:]
    kept = list(anchor)
    while len(kept) < budget:
        gain = {
            index: attention[index] * min(1.0, *(1 - features[index] @ features[one] for one in kept))
            for index in range(len(tokens))
            if index not in kept
        }
        kept.append(max(gain, key=gain.get))
    return anchor, sorted(kept)


@pytest.mark.parametrize("has_class_token", [True, False])
@pytest.mark.parametrize("budget, smallest, largest", [(1, 1, 1), (7, 1, 3), (16, 3, 8), (26, 4, 13)])
@pytest.mark.parametrize("novelty, patience", [(0.2, 3), (0.5, 2), (2.0, 1)])
def test_the_rule_in_plain_loops(has_class_token, budget, smallest, largest, novelty, patience):
    evidence = RandomEvidence([3, 1, 2, 1])
    evidence.has_class_token = has_class_token
    pruner = AnchorPruner(novelty=novelty, patience=patience)
    assert pruner.anchor_bounds(budget) == (smallest, largest)
    selection = pruner.select(evidence, budget)
    for image in range(4):
        _, kept = by_the_rule(evidence, image, budget, smallest, largest, novelty, patience)
        assert selection.indices[image].tolist() == kept


def test_anchors_of_different_size_in_a_batch():
    """So that the case above is no case of one size."""
    evidence = RandomEvidence([3, 1, 2, 1])
    sizes = {len(by_the_rule(evidence, image, 16, 3, 8, 0.5, 2)[0]) for image in range(4)}
    assert len(sizes) > 1


def circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=-1)[None]


def by_hand(importance):
    """Six tokens on a circle; the text is at 180 degrees, so that the angle from 0 ranks them, negated."""
    evidence = RandomEvidence([1], grid=(1, 6), width=2)
    evidence.image = circle(0.0, 10.0, 50.0, 60.0, 70.0, 80.0)
    evidence.text = circle(180.0)
    evidence.features = circle(0.0, 5.0, 20.0, 90.0, 80.0, 45.0)
    evidence.attention_and_keys = lambda: (torch.tensor([importance]), None)
    return evidence


@pytest.mark.parametrize(
    "options, expected",
    [
        # A = 1, B = 3. Novelties of places 2 and 3 relative to the first: 1 - cos 10 = 0.015, 1 - cos 50 = 0.36.
        ({"novelty": 0.2, "patience": 2}, [0, 1, 2, 4]),  # one counts: the anchor grows to B
        ({"novelty": 0.01, "patience": 1}, [0, 1, 4, 5]),  # the second counts, and is in
        ({"novelty": 0.2, "patience": 1, "max_anchor_share": 0.25}, [0, 2, 4, 5]),  # B = A: nothing is asked
        ({"min_anchor_share": 1.0}, [0, 1, 2, 3]),  # relevance alone
    ],
)
def test_the_anchor_grows_until_enough_is_new(options, expected):
    # Behind the anchor 4 is worth most; then 3, which is close to it, is worth less than 5, and after 5 less than 2.
    evidence = by_hand([0.1, 0.1, 0.2, 0.4, 0.6, 0.2])
    options = {"min_anchor_share": 0.25, "max_anchor_share": 0.75, **options}
    assert AnchorPruner(**options).select(evidence, 4).indices.tolist() == [expected]


def test_importance_and_novelty_are_multiplied():
    # After 0, token 5 has novelty 1 - cos 45 = 0.29, token 3 has 1: 5 needs 3.4 times the importance of 3.
    options = {"min_anchor_share": 0.0, "max_anchor_share": 0.0}
    for importance, expected in ((0.30, [0, 3]), (0.40, [0, 5])):
        evidence = by_hand([0.1, 0.1, 0.1, 0.1, 0.05, importance])
        assert AnchorPruner(**options).select(evidence, 2).indices.tolist() == [expected]


def test_novelty_is_at_most_one():
    # Behind 0, token 3 at 90 degrees has novelty 1; token 5 at 180 degrees would have 2, and win by 0.6 to 0.4.
    evidence = by_hand([0.1, 0.1, 0.1, 0.4, 0.1, 0.3])
    evidence.features = circle(0.0, 5.0, 20.0, 90.0, 80.0, 180.0)
    options = {"min_anchor_share": 0.0, "max_anchor_share": 0.0}
    assert AnchorPruner(**options).select(evidence, 2).indices.tolist() == [[0, 3]]


@pytest.mark.parametrize("budget, expected", [(32, (5, 16)), (64, (10, 32)), (128, (20, 64)), (256, (40, 128))])
def test_the_anchors_of_the_papers_budgets(budget, expected):
    assert AnchorPruner().anchor_bounds(budget) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"novelty": 2.5}, r"`novelty` must be a number in \[0, 2\], got 2.5"),
        ({"patience": 0}, "`patience` must be a positive integer, got 0"),
        ({"patience": True}, "`patience`"),
        ({"min_anchor_share": -0.1}, r"`min_anchor_share` must be a number in \[0, 1\], got -0.1"),
        ({"max_anchor_share": "half"}, "`max_anchor_share` must be a number"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        AnchorPruner(**options)


def test_any_patience_is_counted():
    """Clients of a server may send it."""
    candidates = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=torch.manual_seed(0)), dim=-1)
    sizes = [AnchorPruner(novelty=0.0, patience=patience).anchor_sizes(candidates, 2) for patience in (4, 2**70)]
    assert torch.equal(*sizes) and AnchorPruner(patience=1, novelty=0.0).anchor_sizes(candidates, 2).max() < 6
