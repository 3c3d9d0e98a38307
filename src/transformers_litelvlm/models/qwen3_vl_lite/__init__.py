"""The Qwen3-VL family: stock weights, images and videos."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import Qwen3_VLLiteConfig
from transformers_litelvlm.models.qwen3_vl_lite.modeling_qwen3_vl_lite import (
    Qwen3_VLLite,
    Qwen3_VLLiteForConditionalGeneration,
    Qwen3_VLLiteModel,
)
from transformers_litelvlm.models.qwen3_vl_lite.processing_qwen3_vl_lite import (
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
)


register_family(Qwen3_VLLiteConfig, Qwen3_VLLiteProcessor, Qwen3_VLLiteModel, Qwen3_VLLiteForConditionalGeneration)

__all__ = [
    "Qwen3_VLLite",
    "Qwen3_VLLiteConfig",
    "Qwen3_VLLiteForConditionalGeneration",
    "Qwen3_VLLiteModel",
    "Qwen3_VLLiteProcessor",
    "Qwen3_VLLiteVideoProcessor",
]
