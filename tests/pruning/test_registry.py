"""Properties that every registered method must have. A new method is tested here by being registered."""

import pickle

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.methods import EVERY, LAYER_METHODS, LAYER_VARIANTS, METHODS, RAGGED, VARIANTS, assert_same
from transformers_litelvlm.pruning import (
    Selection,
    TokenPruner,
    build_pruner,
    get_pruner,
    list_pruners,
    register_pruner,
)
from transformers_litelvlm.pruning.registry import _REGISTRY


NUM_REAL = [3, 1, 2]
NUM_TOKENS = 30


def select(name, options, evidence, budget):
    return build_pruner(name, **options).select(evidence, budget)


def assert_well_formed(selection, num_images, budget):
    indices = selection.indices
    assert indices.shape == (num_images, budget) and indices.dtype == torch.long
    assert indices.min() >= 0 and indices.max() < NUM_TOKENS
    assert all(len(set(row)) == budget for row in indices.tolist())
    assert (selection.features is None) == (selection.weights is None)
    if selection.features is not None:
        assert selection.features.shape == (num_images, budget, 8)
        assert selection.weights.shape == (num_images, budget, NUM_TOKENS) and selection.weights.min() >= 0


def test_every_registered_method_is_exercised():
    assert sorted({**VARIANTS, **LAYER_VARIANTS}) == list_pruners()


def test_every_option_is_exercised():
    for name in list_pruners():
        tried = {option for other, options in EVERY + RAGGED + LAYER_METHODS if other == name for option in options}
        assert tried == set(get_pruner(name).option_names()) - {"schedule"}, name  # that one contradicts budgets


@pytest.mark.parametrize("name, options", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 29])
def test_exact_count_unique_and_in_range(name, options, budget):
    assert_well_formed(select(name, options, RandomEvidence(NUM_REAL), budget), 3, budget)
    counted = build_pruner(name, **options).tokens_per_layer(NUM_TOKENS, budget, num_layers=4, num_tower_layers=6)
    assert counted == [budget] * 4


@pytest.mark.parametrize("name, options", RAGGED)
def test_a_ragged_selection_is_one_per_image_and_does_not_depend_on_the_batch(name, options):
    together = select(name, options, RandomEvidence(NUM_REAL, extra=2), 7)
    assert len(together) == 3
    for image, selection in enumerate(together):
        assert_well_formed(selection, 1, selection.indices.shape[1])
        (alone,) = select(name, options, RandomEvidence(NUM_REAL, extra=2).only(image), 29)
        assert_same(selection, alone)
    pruner = build_pruner(name, **options)
    assert pruner.tokens_per_layer(NUM_TOKENS, 7, num_layers=4, num_tower_layers=6) is None


@pytest.mark.parametrize("name, options", EVERY)
def test_the_whole_budget_keeps_every_token(name, options):
    evidence = RandomEvidence(NUM_REAL)
    selection = select(name, options, evidence, NUM_TOKENS).in_raster_order()
    assert selection.indices.tolist() == [list(range(NUM_TOKENS))] * 3
    if name == "trim" and selection.features is not None:  # the mean of one token is that token
        assert torch.equal(selection.features, evidence.features)
    if name == "tome":
        unmerged = evidence.run_layers(lambda states, keys: (states, None))[:, 1:]
        assert torch.equal(selection.features, unmerged)


@pytest.mark.parametrize("name, options", METHODS)
@pytest.mark.parametrize("budget", [7, 20])
def test_a_batch_equals_its_images_one_by_one(name, options, budget):
    """With different numbers of expressions, so that padding of the text is at work too."""
    together = select(name, options, RandomEvidence(NUM_REAL, extra=2), budget)
    for image in range(3):
        alone = select(name, options, RandomEvidence(NUM_REAL, extra=2).only(image), budget)
        rows = (None if tensor is None else tensor[image : image + 1] for tensor in together[3:])
        assert_same(Selection(together.indices[image : image + 1], None, None, *rows), alone)


def of_images(selection):
    """The selection of each image alone."""
    if isinstance(selection, list):
        return selection
    return [Selection(*rows) for rows in zip(*([None] * 3 if part is None else part.split(1) for part in selection))]


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
@pytest.mark.parametrize("budget", [1, 3, 7])
def test_a_token_that_is_not_finite_is_seen_or_changes_nothing(name, options, budget):
    """One is enough, out of the range of float16. Else other tokens are kept, and all that comes out is finite."""
    clean = of_images(select(name, options, RandomEvidence([2, 1, 1]), budget))
    for place in (3, 18, 24):
        evidence = RandomEvidence([2, 1, 1])
        evidence.features[1, place, 0] = evidence.projected[1, place, 0] = torch.inf
        found = of_images(select(name, options, evidence, budget))
        for image in (0, 2):
            assert torch.equal(found[image].indices, clean[image].indices)
        [kept], features = found[1].indices.tolist(), found[1].features
        is_refused = len(set(kept)) < len(kept) or min(kept) < 0  # by `Selection.checked`
        is_seen = place in kept if features is None else not features.isfinite().all()
        assert is_refused or is_seen or kept == clean[1].indices[0].tolist(), place


@pytest.mark.parametrize("name, options", METHODS)
def test_raster_order_is_the_same_tokens_sorted(name, options):
    selection = select(name, options, RandomEvidence(NUM_REAL), 7)
    raster = selection.in_raster_order()
    for image in range(3):
        order = sorted(range(7), key=selection.indices[image].tolist().__getitem__)
        assert raster.indices[image].tolist() == selection.indices[image][order].tolist()
        if selection.features is not None:
            assert torch.equal(raster.features[image], selection.features[image][order])
            assert torch.equal(raster.weights[image], selection.weights[image][order])


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
def test_deterministic_and_the_global_random_state_is_untouched(name, options):
    def chosen():
        selection = select(name, options, RandomEvidence(NUM_REAL), 7)
        return [
            row.tolist() for part in (selection if isinstance(selection, list) else [selection]) for row in part[0]
        ]

    before = torch.get_rng_state()
    first = chosen()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert chosen() == first


@pytest.mark.parametrize("name, options", METHODS)
def test_bfloat16_keeps_the_float32_set_and_returns_its_own_dtype(name, options):
    """Every number a method reads is exact in bfloat16, so scores in float32 are the same in both types."""

    def evidence(dtype):
        made = RandomEvidence(NUM_REAL, num_layers=1)
        made.layers = torch.eye(8)[None]  # keys inside the tower are exact too
        return made.to(torch.bfloat16).to(dtype)

    full = select(name, options, evidence(torch.float32), 20)
    half = select(name, options, evidence(torch.bfloat16), 20)
    assert half.indices.tolist() == full.indices.tolist()
    for scores in (half.similarity, half.context, half.weights):
        assert scores is None or scores.dtype == torch.float32
    if half.features is not None:
        assert half.features.dtype == torch.bfloat16
        torch.testing.assert_close(half.features.float(), full.features, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("name, options", METHODS)
def test_nothing_is_read_back_from_the_device(name, options):
    """The meta device holds no values: `.item()`, `nonzero` or a mask of unknown size would raise here."""
    indices = select(name, options, RandomEvidence(NUM_REAL).to("meta"), 7).indices
    assert indices.shape == (3, 7) and indices.device.type == "meta"


@pytest.mark.parametrize("name, options", EVERY + RAGGED + LAYER_METHODS)
def test_a_method_pickles_and_is_frozen(name, options):
    pruner = build_pruner(name, **options)
    assert pickle.loads(pickle.dumps(pruner)) == pruner
    with pytest.raises(AttributeError):
        pruner.budget = 3


def test_unknown_names_and_options_list_what_there_is():
    with pytest.raises(ValueError, match=r"'nope'.*litelvlm, none, .*random"):
        get_pruner("nope")
    with pytest.raises(ValueError, match=r"\['shade'\].*'random'.*seed"):
        build_pruner("random", shade=1)


def test_a_third_party_can_register_and_a_taken_name_is_refused():
    try:

        @register_pruner("first_tokens")
        class FirstTokens(TokenPruner):
            def select(self, evidence, budget):
                return Selection(torch.arange(budget).expand(len(evidence.features), -1))

        assert build_pruner("first_tokens").select(RandomEvidence([1]), 3).indices.tolist() == [[0, 1, 2]]
        with pytest.raises(ValueError, match="'first_tokens' is already registered by"):
            register_pruner("first_tokens")(type("Other", (TokenPruner,), {}))
        # Else the one name would become the other in every config.
        with pytest.raises(ValueError, match="FirstTokens is the method 'first_tokens' already: register a subclass"):
            register_pruner("first_ones")(FirstTokens)
        assert get_pruner("first_tokens").name == "first_tokens" and "first_ones" not in list_pruners()
    finally:
        _REGISTRY.pop("first_tokens", None)
    with pytest.raises(ValueError, match="lower-case identifier, got 'Not A Name'"):
        register_pruner("Not A Name")


@pytest.mark.parametrize("name", [None, 3])
def test_a_method_is_named_by_a_text(name):
    with pytest.raises(ValueError, match=f"Unknown pruning `method` {name}. Known methods: anchorprune"):
        get_pruner(name)
