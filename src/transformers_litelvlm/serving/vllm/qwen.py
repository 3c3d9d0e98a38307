"""Qwen2.5-VL and Qwen3-VL with pruned visual tokens, of pictures."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessingInfo
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalProcessor
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_litelvlm.models.guidance.encoded import Grid
from transformers_litelvlm.models.qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteProcessor,
)
from transformers_litelvlm.models.qwen3_vl_lite import Qwen3_VLLiteForConditionalGeneration, Qwen3_VLLiteProcessor
from transformers_litelvlm.serving.vllm.model import PrunedModelMixin
from transformers_litelvlm.serving.vllm.positions import Grids
from transformers_litelvlm.serving.vllm.processing import PictureDummyInputs, PrunedInfoMixin, PrunedProcessorMixin


class QwenInfoMixin(PrunedInfoMixin):
    """For what vLLM asks about a family of Qwen's."""

    request_keywords = ("expressions", "min_pixels", "max_pixels", "size")
    get_max_image_tokens: Any

    def largest_grid(self) -> Grid:
        return 1, 1, self.get_max_image_tokens()


class Qwen25Info(QwenInfoMixin, Qwen2_5_VLProcessingInfo):
    """Of Qwen2.5-VL."""

    processor_class = Qwen2_5_VLLiteProcessor


class Qwen3Info(QwenInfoMixin, Qwen3VLProcessingInfo):
    """Of Qwen3-VL."""

    processor_class = Qwen3_VLLiteProcessor

    # vLLM's class adds settings of videos, which are not served.
    get_supported_mm_processor_kwargs = Qwen2_5_VLProcessingInfo.get_supported_mm_processor_kwargs


class QwenLiteInputs(PrunedProcessorMixin, Qwen2VLMultiModalProcessor):
    """From a request to what either of them reads. Pictures need nothing of what later families do for videos."""

    grid_field = "image_grid_thw"


@MULTIMODAL_REGISTRY.register_processor(QwenLiteInputs, info=Qwen25Info, dummy_inputs=PictureDummyInputs)
class PrunedQwen25(PrunedModelMixin, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL on the visual tokens that a pruning method keeps."""

    model_class: Any = Qwen2_5_VLLiteForConditionalGeneration
    towers = ("visual",)
    kind = Grids


@MULTIMODAL_REGISTRY.register_processor(QwenLiteInputs, info=Qwen3Info, dummy_inputs=PictureDummyInputs)
class PrunedQwen3(PrunedModelMixin, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL, with DeepStack, on the visual tokens that a pruning method keeps."""

    model_class: Any = Qwen3_VLLiteForConditionalGeneration
    towers = ("visual",)
    kind = Grids
