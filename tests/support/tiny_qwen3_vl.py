"""Tiny random models of the Qwen3-VL families, with the vocabulary and the media of the tiny Qwen2.5-VL."""

from __future__ import annotations

from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.support.tiny_qwen2_5_vl import TinyQwen
from transformers_litelvlm import (
    Qwen3_VLLite,
    Qwen3_VLLiteConfig,
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
    Qwen3_VLMoeLite,
    Qwen3_VLMoeLiteConfig,
)


PROCESSORS = {"processor_class": Qwen3_VLLiteProcessor, "video_processor_class": Qwen3_VLLiteVideoProcessor}
# DeepStack reads two of the three vision blocks.
VISION = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
TEXT = {"head_dim": 12, "rope_parameters": ROPE}
# Kernels for experts in half precision need widths that are multiples of 8.
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

QWEN3_VL = TinyQwen(
    model_class=Qwen3_VLLite,
    config_class=Qwen3_VLLiteConfig,
    stock_class=Qwen3VLForConditionalGeneration,
    stock_config_class=Qwen3VLConfig,
    **PROCESSORS,
    vision=VISION,
    text=TEXT,
)
# The second layer, where there is one, has no experts.
QWEN3_VL_MOE = TinyQwen(
    model_class=Qwen3_VLMoeLite,
    config_class=Qwen3_VLMoeLiteConfig,
    stock_class=Qwen3VLMoeForConditionalGeneration,
    stock_config_class=Qwen3VLMoeConfig,
    **PROCESSORS,
    vision=VISION,
    text={**TEXT, **EXPERTS, "mlp_only_layers": [1], "tie_word_embeddings": False},
)
