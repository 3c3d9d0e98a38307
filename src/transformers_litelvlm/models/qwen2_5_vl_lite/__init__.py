"""The Qwen2.5-VL family: stock weights, images and videos."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLite,
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteForReferringSegmentation,
    Qwen2_5_VLLiteModel,
)
from transformers_litelvlm.models.qwen2_5_vl_lite.processing_qwen2_5_vl_lite import Qwen2_5_VLLiteProcessor
from transformers_litelvlm.models.qwen2_5_vl_lite.video_processing_qwen2_5_vl_lite import Qwen2_5_VLLiteVideoProcessor


register_family(
    Qwen2_5_VLLiteConfig,
    Qwen2_5_VLLiteProcessor,
    Qwen2_5_VLLiteModel,
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteForReferringSegmentation,
    # For both what knows the names of old and new checkpoints; upstream's own for the base model takes both for new.
    renamed_as=dict.fromkeys(
        ("Qwen2_5_VLLiteForConditionalGeneration", "Qwen2_5_VLLiteModel"), "Qwen2_5_VLForConditionalGeneration"
    ),
)

__all__ = [
    "Qwen2_5_VLLite",
    "Qwen2_5_VLLiteConfig",
    "Qwen2_5_VLLiteForConditionalGeneration",
    "Qwen2_5_VLLiteForReferringSegmentation",
    "Qwen2_5_VLLiteModel",
    "Qwen2_5_VLLiteProcessor",
    "Qwen2_5_VLLiteVideoProcessor",
]
