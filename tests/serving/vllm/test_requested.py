"""Pruning settings of a request: what they change, and what is refused."""

from __future__ import annotations

import pytest

from tests.support.tiny_llava import tiny_config
from transformers_litelvlm.serving.vllm.requested import as_key, as_ours, of_key, pack, requested, unpack


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"image_pruning_rate": 0.9}, {"pruning_retention_ratio": 0.1}),
        ({"image_pruning_rate": 0}, {"pruning_retention_ratio": 1.0}),
        ({"image_pruning_method": "trim", "pruning_budget": 5}, {"pruning_method": "trim", "pruning_budget": 5}),
    ],
)
def test_names_of_vllm(given, ours):
    assert as_ours(given) == ours


@pytest.mark.parametrize("rate", [1, -0.1, True, "0.5", None, float("nan")])
def test_no_rate(rate):
    with pytest.raises(ValueError, match="image_pruning_rate"):
        as_ours({"image_pruning_rate": rate})


@pytest.mark.parametrize("twin", ["pruning_budget", "pruning_retention_ratio"])
def test_the_same_thing_twice(twin):
    with pytest.raises(ValueError, match=f"`image_pruning_rate` and `{twin}` exclude each other"):
        as_ours({"image_pruning_rate": 0.5, twin: None})


def test_a_request_changes_the_servers_settings():
    config = tiny_config(pruning_config={"budget": 8, "method_options": {"context_share": 0.25}})
    assert requested(config, {}) is config.pruning_config
    found = requested(config, {"pruning_config": {"retention_ratio": 0.25}})
    assert (found.budget, found.retention_ratio, found.method_options) == (None, 0.25, {"context_share": 0.25})
    assert requested(config, {"pruning_preset": "fast"}).retention_ratio == 1 / 9
    assert config.pruning_config.budget == 8


def test_settings_travel():
    pruning = tiny_config(pruning_config={"budget": 8, "token_order": "raster"}).pruning_config
    key = as_key(pruning)
    assert unpack(pack(key)) == key
    assert as_key(of_key(key)) == key
    others = [pruning.replace(budget=9), pruning.replace(token_order="reference"), pruning.replace(method="trim")]
    assert len({key, *map(as_key, others)}) == 4


@pytest.mark.parametrize(
    ("server", "asked", "message"),
    [
        ({"budget": 8}, {"pruning_method": "fastv"}, "inside the language model"),
        ({"budget": 8}, {"pruning_budget": 4, "pruning_retention_ratio": 0.5}, "exclude each other"),
        ({"budget": 8, "position_ids": "compact"}, {"pruning_position_ids": "original"}, "give 'compact'"),
        ({"budget": 8, "position_ids": "original"}, {"pruning_position_ids": "compact"}, "give 'original'"),
        ({"budget": None}, {"pruning_budget": 4}, "without pruning"),
        ({"budget": 8}, {"pruning": 4}, "Unknown pruning settings"),
    ],
)
def test_refused_in_one_line(server, asked, message):
    with pytest.raises(ValueError, match=message) as raised:
        requested(tiny_config(pruning_config=server), asked)
    assert "\n" not in str(raised.value)
