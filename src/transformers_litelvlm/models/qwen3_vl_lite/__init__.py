"""The Qwen3-VL families, dense and mixture of experts: stock weights, images and videos."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import (
    Qwen3_VLLiteConfig,
    Qwen3_VLMoeLiteConfig,
)
from transformers_litelvlm.models.qwen3_vl_lite.modeling_qwen3_vl_lite import (
    Qwen3_VLLite,
    Qwen3_VLLiteForConditionalGeneration,
    Qwen3_VLLiteForReferringSegmentation,
    Qwen3_VLLiteModel,
    Qwen3_VLMoeLite,
    Qwen3_VLMoeLiteForConditionalGeneration,
    Qwen3_VLMoeLiteModel,
)
from transformers_litelvlm.models.qwen3_vl_lite.processing_qwen3_vl_lite import (
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
)


register_family(
    Qwen3_VLLiteConfig,
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteModel,
    Qwen3_VLLiteForConditionalGeneration,
    Qwen3_VLLiteForReferringSegmentation,
)
register_family(
    Qwen3_VLMoeLiteConfig,
    Qwen3_VLLiteProcessor,
    Qwen3_VLMoeLiteModel,
    Qwen3_VLMoeLiteForConditionalGeneration,
    renamed_as={Qwen3_VLMoeLiteConfig.model_type: "qwen3_vl_moe"},  # experts are transposed
)

__all__ = [
    "Qwen3_VLLite",
    "Qwen3_VLLiteConfig",
    "Qwen3_VLLiteForConditionalGeneration",
    "Qwen3_VLLiteForReferringSegmentation",
    "Qwen3_VLLiteModel",
    "Qwen3_VLLiteProcessor",
    "Qwen3_VLLiteVideoProcessor",
    "Qwen3_VLMoeLite",
    "Qwen3_VLMoeLiteConfig",
    "Qwen3_VLMoeLiteForConditionalGeneration",
    "Qwen3_VLMoeLiteModel",
]
