"""The LLaVA family: stock LLaVA weights, and LLaVA with a [SEG] projection and a SAM decoder (LISA, GLaMM)."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteModel,
)
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


register_family(
    LlavaLiteConfig,
    LlavaLiteProcessor,
    LlavaLiteModel,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    renamed_as={"LlavaLiteForConditionalGeneration": "llava", "LlavaLiteModel": "LlavaModel"},
)

__all__ = [
    "LlavaLiteConfig",
    "LlavaLiteForConditionalGeneration",
    "LlavaLiteForReferringSegmentation",
    "LlavaLiteModel",
    "LlavaLiteProcessor",
]
