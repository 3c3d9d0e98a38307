"""Properties of every registered method that prunes inside the language model."""

import pytest
import torch

from tests.support.layer_evidence import RandomLayerEvidence
from tests.support.methods import LAYER_METHODS, assert_same
from transformers_litelvlm.pruning import LayerPruner, Selection, build_pruner, get_pruner


NUM_TOKENS = 36
NUM_TEXT = [5, 2, 9]
NUM_LAYERS = 4
BUDGETS = [4, 12, 20]


def stages(name, options, budget):
    """Layer, tokens before it and tokens behind it, for each layer that prunes."""
    before = NUM_TOKENS
    for layer, left in build_pruner(name, **options).tokens_after(NUM_TOKENS, budget, NUM_LAYERS).items():
        yield layer, before, left
        before = left


def reachable(name, options, budgets=BUDGETS):
    for budget in budgets:
        try:
            yield budget, list(stages(name, options, budget))
        except ValueError:
            continue


CASES = [
    (name, options, budget, *stage)
    for name, options in LAYER_METHODS
    for budget, found in reachable(name, options)
    for stage in found
]


def select(name, options, budget, layer, before, **kwargs):
    evidence = RandomLayerEvidence(NUM_TEXT, NUM_TOKENS, before, layer=layer, num_layers=NUM_LAYERS, **kwargs)
    return build_pruner(name, **options).select(evidence, budget)


def test_every_method_is_tried_at_a_budget():
    for name, options in LAYER_METHODS:
        assert issubclass(get_pruner(name), LayerPruner)
        assert any(case[:2] == (name, options) for case in CASES), name


@pytest.mark.parametrize("name, options, budget, layer, before, left", CASES)
def test_exact_count_unique_and_in_range(name, options, budget, layer, before, left):
    selection = select(name, options, budget, layer, before)
    assert selection.indices.shape == (3, left) and selection.indices.dtype == torch.long
    assert selection.indices.min() >= 0 and selection.indices.max() < before
    assert all(len(set(row)) == left for row in selection.indices.tolist())
    assert (selection.features is None) == (selection.weights is None)
    if selection.features is not None:
        assert selection.features.shape == (3, left, 8) and selection.weights.shape == (3, left, before)
        torch.testing.assert_close(selection.weights.sum(dim=-1), torch.ones(3, left))


@pytest.mark.parametrize("name, options, budget, layer, before, left", CASES)
def test_a_batch_equals_its_images_one_by_one(name, options, budget, layer, before, left):
    """With texts of different lengths, so that padding of the text is at work too."""
    together = select(name, options, budget, layer, before, extra=3)
    for image in range(3):
        evidence = RandomLayerEvidence(NUM_TEXT, NUM_TOKENS, before, layer=layer, num_layers=NUM_LAYERS)
        alone = build_pruner(name, **options).select(evidence.only(image), budget)
        rows = (None if tensor is None else tensor[image : image + 1] for tensor in together[3:])
        assert_same(Selection(together.indices[image : image + 1], None, None, *rows), alone)


@pytest.mark.parametrize("name, options, budget, layer, before, left", CASES)
def test_deterministic_and_the_global_random_state_is_untouched(name, options, budget, layer, before, left):
    random_state = torch.get_rng_state()
    first = select(name, options, budget, layer, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(123)
    assert_same(select(name, options, budget, layer, before), first)


@pytest.mark.parametrize("name, options, budget, layer, before, left", CASES)
def test_bfloat16_keeps_the_float32_set(name, options, budget, layer, before, left):
    def evidence(dtype):
        made = RandomLayerEvidence(NUM_TEXT, NUM_TOKENS, before, layer=layer, num_layers=NUM_LAYERS)
        made.change(lambda tensor: tensor.bfloat16().to(dtype) if tensor.is_floating_point() else tensor)
        for name in ("attention", "last", "of_text", "of_visual"):  # methods get probabilities in float32
            setattr(made, name, getattr(made, name).float())
        return made

    full, half = (build_pruner(name, **options).select(evidence(t), budget) for t in (torch.float32, torch.bfloat16))
    assert half.indices.tolist() == full.indices.tolist()
    if half.features is not None:
        assert half.features.dtype == torch.bfloat16
        torch.testing.assert_close(half.features.float(), full.features, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name, options, budget, layer, before, left", CASES)
def test_nothing_is_read_back_from_the_device(name, options, budget, layer, before, left):
    evidence = RandomLayerEvidence(NUM_TEXT, NUM_TOKENS, before, layer=layer, num_layers=NUM_LAYERS)
    indices = build_pruner(name, **options).select(evidence.change(lambda tensor: tensor.to("meta")), budget).indices
    assert indices.shape == (3, left) and indices.device.type == "meta"


@pytest.mark.parametrize("name, options", LAYER_METHODS)
def test_a_layer_that_prunes_counts_what_enters_it(name, options):
    for budget, found in reachable(name, options):
        counts = build_pruner(name, **options).tokens_per_layer(
            NUM_TOKENS, budget, num_layers=NUM_LAYERS, num_tower_layers=6
        )
        expected = [NUM_TOKENS] * NUM_LAYERS
        for layer, before, left in found:
            assert counts[layer] == before
            expected[layer + 1 :] = [left] * (NUM_LAYERS - layer - 1)
        assert counts == expected
