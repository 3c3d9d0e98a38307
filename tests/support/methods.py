"""Every registered method with the options that change its code path, and what makes two selections the same."""

from __future__ import annotations

import torch


# Options that change the code path; a test below fails when a registered method is missing here.
VARIANTS = {
    "anchorprune": [
        {},
        {"novelty": 1.0, "patience": 1},
        {"min_anchor_share": 0.3, "max_anchor_share": 0.9},
    ],
    "cdpruner": [{}],
    "cls_attention": [{}],
    "divprune": [{}, {"coordinate_weight": 0.5}],
    "litelvlm": [
        {},
        {"similarity": "cosine"},
        {"similarity": "surgery", "ranking": "forward"},
        {"ranking": "forward"},
        {"context_share": 0.5},
        {"context_share": 1.0},
    ],
    "none": [{}],
    "prumerge_plus": [{}, {"supplement": False}, {"num_neighbours": 0}, {"repeats": True}],
    "random": [{}, {"seed": 7}],
    "tome": [{}, {"proportional_attention": False}],
    "trim": [{}, {"aggregate": False}],
    "uniform": [{}],
    "vispruner": [{}, {"important_ratio": 1.0}, {"important_ratio": 0.0, "drop_per_round": 3}],
    "visionzip": [{}, {"contextual_share": 0.0}, {"contextual_share": 1.0}],
}
# Inside the language model; their own properties are in test_layer_methods.py.
LAYER_VARIANTS = {
    "fastv": [{"layer": 1}, {"layer": 2, "match": "average"}],
    "ivc_prune": [
        {"layer": 2},
        {"layer": 3, "position_share": 0.1, "seed_share": 0.2, "foreground": "joint"},
    ],
    # Tables for 4 and 12 of 36 tokens; 12 of 16 with a merge of two tokens.
    "sparsevlm": [{"layers": [0, 1, 2]}, {"layers": [0, 2], "keep": [12, 11]}],
}
LAYER_METHODS = [(name, options) for name, variants in LAYER_VARIANTS.items() for options in variants]
# The image decides how many tokens stay.
RAGGED = [
    ("prumerge_plus", {"adaptive": True}),
    ("prumerge_plus", {"adaptive": True, "supplement": False}),
    ("trim", {"adaptive": True}),
    ("trim", {"adaptive": True, "aggregate": False}),
]
EVERY = [(name, options) for name, variants in VARIANTS.items() for options in variants]
METHODS = [(name, options) for name, options in EVERY if name != "none"]
# Of each kind one: off, by text, merging, inside the vision tower, inside the language model, merging there, caches.
ONE_OF_EACH_KIND = {"none", "litelvlm", "visionzip", "tome", "fastv", "sparsevlm", "ivc_prune"}


def assert_same(actual, expected):
    """Equal indices, and features up to what sums of another batch size differ by."""
    assert actual.indices.tolist() == expected.indices.tolist()
    for field in ("features", "weights"):
        torch.testing.assert_close(getattr(actual, field), getattr(expected, field), atol=1e-5, rtol=1e-5)
