from __future__ import annotations

import pytest

from tests.support.tiny_llava import tiny_config
from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL
from transformers_litelvlm.serving.vllm.servable import (
    TESTED,
    check_positions,
    check_settings,
    check_versions,
    image_grid,
    num_placeholders,
)


def test_a_tested_pair_is_accepted():
    vllm, transformers = TESTED[0]
    check_versions(f"{vllm}.3", f"{transformers}.1")


@pytest.mark.parametrize(
    ("vllm", "transformers"), [("0.31.0", "5.24.0"), ("0.32.0", "5.23.0"), ("1.0", "5.24"), ("unknown", "5.24.0")]
)
def test_other_versions_are_refused_in_one_line(vllm, transformers):
    with pytest.raises(ValueError, match="was not tested") as raised:
        check_versions(vllm, transformers)
    assert vllm in str(raised.value) and transformers in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"method": "fastv", "budget": 4}, "inside the language model"),
        ({"budget": 8, "then": {"method": "fastv", "budget": 4}}, "inside the language model"),
        ({"method": "trim", "budget": 4, "method_options": {"adaptive": True}}, "picture decides"),
        ({"method": "prumerge_plus", "budget": 4, "method_options": {"adaptive": True}}, "picture decides"),
    ],
)
def test_what_cannot_be_served(pruning, message):
    with pytest.raises(ValueError, match=message) as raised:
        check_settings(tiny_config(pruning_config=pruning))
    assert "\n" not in str(raised.value)


def test_methods_of_clip_towers_are_refused_for_others():
    with pytest.raises(ValueError, match="not defined for Qwen2.5-VL"):
        check_settings(QWEN2_5_VL.tiny_config(pruning_config={"method": "tome", "retention_ratio": 0.5}))


@pytest.mark.parametrize("pruning", [{"budget": None}, {"method": "fastv"}, {"budget": 5, "method": "divprune"}])
def test_what_can_be_served(pruning):
    check_settings(tiny_config(pruning_config=pruning))


def test_placeholders():
    config = tiny_config(pruning_config={"budget": 5})
    assert image_grid(config) == (1, 4, 4)
    assert num_placeholders(check_settings(config), image_grid(config)) == 5
    config.pruning_budget = 99
    assert num_placeholders(check_settings(config), image_grid(config)) == 16
    config.pruning_budget = None
    assert num_placeholders(check_settings(config), image_grid(config)) == 16


def test_placeholders_where_the_size_decides():
    config = QWEN2_5_VL.tiny_config(pruning_config={"retention_ratio": 0.5})
    grid = image_grid(config, (1, 12, 8))
    assert grid == (1, 6, 4)
    assert num_placeholders(check_settings(config), grid) == 12


@pytest.mark.parametrize(
    ("pruning", "most"),
    [
        ({"budget": 4, "position_ids": "original"}, 7),  # (4 * 30 - 30) // (16 - 4)
        ({"budget": 4, "position_ids": "compact"}, 1000),
        ({"budget": 16, "position_ids": "original"}, 1000),
        ({"budget": None}, 1000),
    ],
)
def test_positions_stay_in_the_table_of_angles(pruning, most):
    config = tiny_config(pruning_config=pruning)
    config.text_config.max_position_embeddings = 30
    settings = check_settings(config)
    check_positions(config, settings, most, 30)
    if most < 1000:
        with pytest.raises(ValueError, match=f"at most {most}") as raised:
            check_positions(config, settings, most + 1, 30)
        assert "\n" not in str(raised.value)
    config = QWEN2_5_VL.tiny_config(pruning_config={"retention_ratio": 0.5})
    check_positions(config, check_settings(config), 1000, 30)
