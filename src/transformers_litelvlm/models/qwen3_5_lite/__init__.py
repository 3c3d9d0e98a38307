"""The Qwen3.5 families, dense and mixture of experts: stock weights, images and videos."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.qwen3_5_lite.configuration_qwen3_5_lite import (
    Qwen3_5LiteConfig,
    Qwen3_5MoeLiteConfig,
)
from transformers_litelvlm.models.qwen3_5_lite.modeling_qwen3_5_lite import (
    Qwen3_5Lite,
    Qwen3_5LiteForConditionalGeneration,
    Qwen3_5LiteModel,
    Qwen3_5MoeLite,
    Qwen3_5MoeLiteForConditionalGeneration,
    Qwen3_5MoeLiteModel,
)
from transformers_litelvlm.models.qwen3_vl_lite.processing_qwen3_vl_lite import Qwen3_VLLiteProcessor


# Prompts, images and videos are those of Qwen3-VL.
register_family(Qwen3_5LiteConfig, Qwen3_VLLiteProcessor, Qwen3_5LiteModel, Qwen3_5LiteForConditionalGeneration)
register_family(
    Qwen3_5MoeLiteConfig, Qwen3_VLLiteProcessor, Qwen3_5MoeLiteModel, Qwen3_5MoeLiteForConditionalGeneration
)

__all__ = [
    "Qwen3_5Lite",
    "Qwen3_5LiteConfig",
    "Qwen3_5LiteForConditionalGeneration",
    "Qwen3_5LiteModel",
    "Qwen3_5MoeLite",
    "Qwen3_5MoeLiteConfig",
    "Qwen3_5MoeLiteForConditionalGeneration",
    "Qwen3_5MoeLiteModel",
]
