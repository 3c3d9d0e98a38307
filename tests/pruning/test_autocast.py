"""Scores stay float32 under autocast: the same evidence gives the same selection."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.layer_evidence import RandomLayerEvidence
from tests.support.methods import LAYER_METHODS, METHODS, RAGGED
from transformers_litelvlm.pruning import build_pruner


def select(name, options):
    """Of many tokens, so that rounding would change the order of some."""
    pruner = build_pruner(name, **options)
    if (name, options) not in LAYER_METHODS:
        return pruner.select(RandomEvidence([2, 1], grid=(24, 24), width=64), 64)
    [(layer, left), *_] = pruner.tokens_after(576, 192, 4).items()
    evidence = RandomLayerEvidence([9, 5], 576, layer=layer, width=64)
    return pruner.select(evidence, 192)


CASES = METHODS + RAGGED + [case for case in LAYER_METHODS if case[1].get("match") != "average"]
CASES = [case for case in CASES if "keep" not in case[1]]


def test_every_method_is_here():
    assert {name for name, _ in CASES} == {name for name, _ in METHODS + LAYER_METHODS}


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_autocast_changes_no_selection(name, options):
    expected = select(name, options)
    with torch.autocast("cpu", torch.bfloat16):
        actual = select(name, options)
    parts = zip(actual, expected) if isinstance(expected, list) else [(actual, expected)]
    for own, other in parts:
        for field, value in other._asdict().items():
            found = getattr(own, field)
            assert (found is None) == (value is None), field
            if value is not None:
                assert found.dtype == value.dtype and torch.equal(found, value), field
