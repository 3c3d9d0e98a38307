"""Tiny random models of the Qwen3.5 families, with the vocabulary and the media of the tiny Qwen2.5-VL."""

from __future__ import annotations

from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from tests.support.tiny_qwen2_5_vl import TinyQwen
from tests.support.tiny_qwen3_vl import EXPERTS, PROCESSORS
from transformers_litelvlm import Qwen3_5Lite, Qwen3_5LiteConfig, Qwen3_5MoeLite, Qwen3_5MoeLiteConfig


VISION = {"num_position_embeddings": 36}
# Of two layers, the first is recurrent.
TEXT = {
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    },
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
    "layer_types": ["linear_attention", "full_attention"],
}

QWEN3_5 = TinyQwen(
    model_class=Qwen3_5Lite,
    config_class=Qwen3_5LiteConfig,
    stock_class=Qwen3_5ForConditionalGeneration,
    stock_config_class=Qwen3_5Config,
    **PROCESSORS,
    vision=VISION,
    text=TEXT,
)
QWEN3_5_MOE = TinyQwen(
    model_class=Qwen3_5MoeLite,
    config_class=Qwen3_5MoeLiteConfig,
    stock_class=Qwen3_5MoeForConditionalGeneration,
    stock_config_class=Qwen3_5MoeConfig,
    **PROCESSORS,
    vision=VISION,
    text={**TEXT, **EXPERTS, "shared_expert_intermediate_size": 24},
)
