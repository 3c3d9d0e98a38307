"""Random pruning settings: refused as documented, or the same after a trip through a file, and an exact selection."""

from __future__ import annotations

import json
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.evidence import RandomEvidence
from tests.support.families import FAMILIES
from tests.support.fuzzing import examples, json_values, numbers, quick, texts
from tests.support.layer_evidence import RandomLayerEvidence
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.configuration_pruning import FIELDS
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning import TokenPruner, get_pruner, list_pruners


GRID, NUM_TOKENS, NUM_LAYERS = (6, 6), 36, 4
NUM_REAL = [3, 1, 2]
evidence = RandomEvidence(NUM_REAL, GRID, extra=1)
CONFIGS = {family.name: family.config() for family in FAMILIES}
# Whose positions only count tokens: these take every setting.
COUNTING = {family.name for family in FAMILIES if ("raster", "compact") in family.policies}

WORDS = ["dot", "cosine", "reversed", "forward", "average", "retained", "joint", "separate"]
counts = st.lists(st.integers(-1, 12), max_size=4)


def values_of(kind) -> st.SearchStrategy:
    """Values that fit a type, often, and now and then anything."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return st.one_of(st.sampled_from(parts), json_values)
    if get_origin(kind) in (tuple, list):
        return st.one_of(counts, counts, json_values)
    if parts:
        return st.one_of(*map(values_of, parts))
    return st.one_of(*[fitting(kind)] * 5, json_values)


def fitting(kind) -> st.SearchStrategy:
    """Values of a type, most of them in range."""
    if get_args(kind) and get_origin(kind) not in (Literal, tuple, list):
        return st.one_of(*map(fitting, get_args(kind)))
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    known = {int: st.integers(1, 4), float: st.floats(0, 1), bool: st.booleans(), str: st.sampled_from(WORDS)}
    return counts if get_origin(kind) else known.get(kind, st.none())


@st.composite
def options_of(draw, method):
    hints = get_type_hints(get_pruner(method))
    names = get_pruner(method).option_names()
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
    options = {name: draw(values_of(hints[name])) for name in chosen}
    return {
        **options,
        **(draw(st.dictionaries(texts, json_values, max_size=1)) if draw(st.integers(0, 9)) == 0 else {}),
    }


@st.composite
def sensible(draw):
    """Settings that could be meant."""
    method = draw(st.sampled_from(list_pruners()))
    hints, names = get_type_hints(get_pruner(method)), get_pruner(method).option_names()
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
    options = {name: draw(fitting(hints[name])) for name in chosen}
    return {"method": method, "method_options": options, "budget": draw(st.integers(1, NUM_TOKENS))}


@st.composite
def settings(draw):
    """Settings in which often something is wrong."""
    method = draw(st.sampled_from(list_pruners()))
    chosen = {"method": method, "method_options": draw(options_of(method))}
    kind = draw(st.sampled_from(["budget", "budget", "retention_ratio", "none", "both"]))
    if kind in ("budget", "both"):
        chosen["budget"] = draw(st.one_of(*[st.integers(1, NUM_TOKENS)] * 5, numbers))
    if kind in ("retention_ratio", "both"):
        chosen["retention_ratio"] = draw(st.one_of(*[st.floats(0.01, 1)] * 5, numbers))
    if draw(st.integers(0, 5)) == 0:
        second = draw(st.sampled_from(["fastv", "ivc_prune", "sparsevlm", *list_pruners()]))
        budget = draw(st.one_of(st.integers(1, NUM_TOKENS), numbers))
        chosen["then"] = {"method": second, "method_options": draw(options_of(second)), "budget": budget}
    chosen["token_order"] = draw(st.sampled_from([None, "raster", "reference"]))
    chosen["position_ids"] = draw(st.sampled_from([None, "original", "compact"]))
    wrong = draw(st.dictionaries(st.sampled_from([*FIELDS, "budgt", "\ud800"]), json_values, max_size=1))
    return {**chosen, **(wrong if draw(st.integers(0, 5)) == 0 else {})}


def built(chosen) -> PruningConfig | None:
    with quick("setting"):
        try:
            return PruningConfig(**chosen)
        except ValueError as error:
            assert len(str(error)) < 1000, f"{len(str(error))} characters"
            return None


def assert_families_follow(pruning):
    """Every family takes a setting, or refuses it and stays as it is."""
    for name, config in CONFIGS.items():
        before = config.pruning_config
        try:
            with quick("setting of a family"):
                config.pruning_config = pruning
        except ValueError as error:
            assert name not in COUNTING and len(str(error)) < 1000 and config.pruning_config is before
            continue
        settings = PruningSettings.of(config)
        assert settings.keeps_positions or name in COUNTING
        assert settings.inside_language_model is None or not name.startswith("qwen3_5")


def assert_exact(selection, budget):
    assert selection.indices.dtype == torch.long and selection.indices.shape[1] == budget
    assert 0 <= selection.indices.min() and selection.indices.max() < NUM_TOKENS
    assert all(len(set(row)) == budget for row in selection.indices.tolist())
    for values in (selection.features, selection.weights):
        assert values is None or values.isfinite().all()


def select(pruner, budget):
    """What a method chooses of random tokens, checked; nothing if it says that it cannot reach the budget."""
    if isinstance(pruner, TokenPruner):
        selection = pruner.select(evidence, budget)
        expected = pruner.tokens_per_layer(NUM_TOKENS, budget, num_layers=NUM_LAYERS, num_tower_layers=6)
        if isinstance(selection, list):
            assert expected is None and len(selection) == len(NUM_REAL)
            for one in selection:
                assert_exact(one, one.indices.shape[1])
            return
        assert expected == [budget] * NUM_LAYERS and len(selection.indices) == len(NUM_REAL)
        assert_exact(selection, budget)
        return
    left = NUM_TOKENS
    for layer, remaining in pruner.tokens_after(NUM_TOKENS, budget, NUM_LAYERS).items():
        assert 0 <= layer < NUM_LAYERS and 1 <= remaining <= left
        at_layer = RandomLayerEvidence(NUM_REAL, NUM_TOKENS, left, layer=layer, num_layers=NUM_LAYERS)
        assert_exact(pruner.select(at_layer, budget), remaining)
        left = remaining


@example({"method": "trim", "method_options": {"adaptive": "False"}, "budget": 7})  # F7: a text that is true
@example({"method": ["x"]})  # F23
@example({"presets": {"a": 7}})
@example({"method": "random", "method_options": {"seed": 2**64}, "budget": 3})
@example({"budgt": 7})
@example({"method": "x" * 10**6})  # a message of a million letters
@example({"method": "litelvlm", "method_options": {"context_share": "x" * 10**6}})
@example({"budget": "x" * 10**6})
@example({"presets": {"x" * 10**6: 7}})
@example({"x" * 10**6: 7})
@given(st.one_of(sensible(), sensible(), settings()))
@examples(700)
def test_settings(chosen):
    config = built(chosen)
    if config is None:
        return
    assert_families_follow(config)
    same = PruningConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert same.to_dict() == config.to_dict()
    assert same.build_pruner() == config.build_pruner() and same.build().then == config.build().then
    budget = config.resolve(NUM_TOKENS)
    assert budget is None or 1 <= budget < NUM_TOKENS
    assert (budget is not None) == config.is_on or (config.budget or 0) >= NUM_TOKENS or config.retention_ratio > 0.98
    if budget is None:
        return
    if config.budget is not None:
        assert budget == config.budget
    state = torch.get_rng_state()
    with quick(f"selection by {config.method}"):
        try:
            select(config.build_pruner(), budget)
        except ValueError as error:
            assert len(str(error)) < 1000
    assert torch.equal(torch.get_rng_state(), state)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
@examples(300)
def test_settings_of_anything(chosen):
    config = built(chosen)
    if config is not None:
        assert PruningConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


@given(st.sampled_from([*FIELDS, "pruner", "_built", "x"]), json_values)
@examples(200)
def test_fields_that_are_set_later(name, value):
    """What is refused changes nothing."""
    config = PruningConfig(budget=5)
    before = config.to_dict()
    if name == "_built":
        return
    try:
        setattr(config, name, value)
    except (ValueError, AttributeError) as error:
        assert isinstance(error, ValueError) or name not in FIELDS
        assert len(str(error)) < 1000 and config.to_dict() == before
        return
    assert PruningConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_every_method_is_reached():
    """At some budget, with its own options: otherwise the test above would say little about it."""
    for method in list_pruners():
        if method == "none":
            continue
        options = {"fastv": {"layer": 1}, "ivc_prune": {"layer": 2}, "sparsevlm": {"layers": [0, 1, 2]}}.get(
            method, {}
        )
        reached = 0
        for budget in range(1, NUM_TOKENS):
            try:
                select(get_pruner(method)(**options), budget)
                reached += 1
            except ValueError:
                continue
        assert reached >= 3, method
