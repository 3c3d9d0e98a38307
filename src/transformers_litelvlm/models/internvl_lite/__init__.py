"""The InternVL family: stock weights, and InternVL with a [SEG] head and SAM 2 (Sa2VA)."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.internvl_lite.configuration_internvl_lite import InternVLLiteConfig
from transformers_litelvlm.models.internvl_lite.modeling_internvl_lite import (
    InternVLLiteForConditionalGeneration,
    InternVLLiteForReferringSegmentation,
    InternVLLiteModel,
)
from transformers_litelvlm.models.internvl_lite.processing_internvl_lite import InternVLLiteProcessor


register_family(
    InternVLLiteConfig,
    InternVLLiteProcessor,
    InternVLLiteModel,
    InternVLLiteForConditionalGeneration,
    InternVLLiteForReferringSegmentation,
    renamed_as={"InternVLLiteForConditionalGeneration": "internvl", "InternVLLiteModel": "InternVLModel"},
)

__all__ = [
    "InternVLLiteConfig",
    "InternVLLiteForConditionalGeneration",
    "InternVLLiteForReferringSegmentation",
    "InternVLLiteModel",
    "InternVLLiteProcessor",
]
