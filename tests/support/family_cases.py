"""Which method can run in which family of tests/support/families.py, at the sizes of its test batch."""

from __future__ import annotations

import pytest

from tests.support.families import MODELS
from tests.support.methods import LAYER_METHODS, METHODS, RAGGED
from transformers_litelvlm.pruning import build_pruner, get_pruner


NUM_LAYERS = 4
BUDGET = 12


def is_defined(family, name, options=None):
    """Whether the vision tower of `family` has what a method reads."""
    needs = get_pruner(name).needs_class_token or (options or {}).get("similarity") == "surgery"
    return family.has_class_token or not needs


def can_reach(family, name, options):
    if family.is_recurrent:
        return False
    try:
        return all(build_pruner(name, **options).tokens_after(size, BUDGET, NUM_LAYERS) for size in family.sizes)
    except ValueError:  # the authors' tables do not fit these sizes, or the average is out of reach
        return False


LAYER_CASES = [
    (family, name, options) for family in MODELS for name, options in LAYER_METHODS if can_reach(family, name, options)
]


def need_methods_inside(family):
    if family.is_recurrent:
        pytest.skip("methods inside the language model are not defined for this family")


def every_case(family):
    """Every method with all its options, as far as `family` can run it: name and options."""
    before = [(name, options) for name, options in METHODS + RAGGED if is_defined(family, name, options)]
    return before + [(name, options) for other, name, options in LAYER_CASES if other is family]
