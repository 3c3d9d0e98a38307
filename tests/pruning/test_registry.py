"""Properties that every registered method must have. A new method is tested here by being registered."""

import pickle

import pytest
import torch

from tests.pruning.evidence import RandomEvidence
from transformers_litelvlm.pruning import (
    Selection,
    TokenPruner,
    build_pruner,
    get_pruner,
    list_pruners,
    register_pruner,
)
from transformers_litelvlm.pruning.base import _REGISTRY


# Options that change the code path; a test below fails when a registered method is missing here.
VARIANTS = {
    "litelvlm": [
        {},
        {"similarity": "cosine"},
        {"ranking": "forward"},
        {"context_share": 0.5},
        {"context_share": 1.0},
    ],
    "none": [{}],
    "random": [{}, {"seed": 7}],
}
EVERY = [(name, options) for name, variants in VARIANTS.items() for options in variants]
METHODS = [(name, options) for name, options in EVERY if name != "none"]
NUM_REAL = [3, 1, 2]


def select(name, options, evidence, budget):
    return build_pruner(name, **options).select(evidence, budget)


def test_every_registered_method_is_exercised():
    assert sorted(VARIANTS) == list_pruners()


@pytest.mark.parametrize("name, options", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 29])
def test_exact_count_unique_and_in_range(name, options, budget):
    indices = select(name, options, RandomEvidence(NUM_REAL), budget).indices
    assert indices.shape == (3, budget) and indices.dtype == torch.long
    assert indices.min() >= 0 and indices.max() < 30
    assert all(len(set(row)) == budget for row in indices.tolist())


@pytest.mark.parametrize("name, options", EVERY)
def test_the_whole_budget_keeps_every_token(name, options):
    indices = select(name, options, RandomEvidence(NUM_REAL), 30).indices
    assert indices.sort(dim=-1).values.tolist() == [list(range(30))] * 3


@pytest.mark.parametrize("name, options", METHODS)
def test_a_batch_equals_its_images_one_by_one(name, options):
    """With different numbers of expressions, so that padding of the text is at work too."""
    together = select(name, options, RandomEvidence(NUM_REAL, extra=2), 7).indices
    alone = [select(name, options, RandomEvidence(NUM_REAL, extra=2).only(image), 7).indices for image in range(3)]
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("name, options", METHODS)
def test_deterministic_and_the_global_random_state_is_untouched(name, options):
    before = torch.get_rng_state()
    first = select(name, options, RandomEvidence(NUM_REAL), 7).indices
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(select(name, options, RandomEvidence(NUM_REAL), 7).indices, first)


@pytest.mark.parametrize("name, options", METHODS)
def test_bfloat16_keeps_the_float32_set_on_well_separated_scores(name, options):
    """Integers up to 128 are exact in bfloat16, so every score is the same number in both types."""

    def evidence(dtype):
        made = RandomEvidence([1])
        made.image = (torch.arange(30.0).roll(11) * 4 % 120)[None, :, None] * torch.eye(8)[0]
        made.text = torch.eye(8)[None, :1]
        made.query = made.keys = torch.eye(8)[0].expand(1, 30, 8)
        made.query = made.query[:, 0]
        made.values = made.image
        return made.to(dtype)

    options = {**options, "similarity": "dot"} if name == "litelvlm" else options
    full = select(name, options, evidence(torch.float32), 7).indices
    assert select(name, options, evidence(torch.bfloat16), 7).indices.tolist() == full.tolist()


@pytest.mark.parametrize("name, options", METHODS)
def test_nothing_is_read_back_from_the_device(name, options):
    """The meta device holds no values: `.item()`, `nonzero` or a mask of unknown size would raise here."""
    evidence = RandomEvidence(NUM_REAL)
    evidence._each(lambda tensor: tensor.to("meta"))
    indices = select(name, options, evidence, 7).indices
    assert indices.shape == (3, 7) and indices.device.type == "meta"


@pytest.mark.parametrize("name, options", EVERY)
def test_a_method_pickles_and_is_frozen(name, options):
    pruner = build_pruner(name, **options)
    assert pickle.loads(pickle.dumps(pruner)) == pruner
    with pytest.raises(AttributeError):
        pruner.budget = 3


def test_unknown_names_and_options_list_what_there_is():
    with pytest.raises(ValueError, match=r"'nope'.*litelvlm, none, random"):
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
    finally:
        _REGISTRY.pop("first_tokens", None)
    with pytest.raises(ValueError, match="lower-case identifier, got 'Not A Name'"):
        register_pruner("Not A Name")
