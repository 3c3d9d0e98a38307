"""LLaVA with pruned visual tokens."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llava import (
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_litelvlm.models.llava_lite import LlavaLiteForConditionalGeneration, LlavaLiteProcessor
from transformers_litelvlm.serving.vllm.model import PrunedModelMixin
from transformers_litelvlm.serving.vllm.positions import Flat
from transformers_litelvlm.serving.vllm.processing import PictureDummyInputs, PrunedInfoMixin, PrunedProcessorMixin


class LlavaLiteInfo(PrunedInfoMixin, LlavaProcessingInfo):
    """What vLLM asks about LLaVA."""

    processor_class = LlavaLiteProcessor
    needs_clip_tokens = True

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.max_placeholders()


class LlavaLiteInputs(PrunedProcessorMixin, LlavaMultiModalProcessor):
    """From a request to what LLaVA reads."""


@MULTIMODAL_REGISTRY.register_processor(LlavaLiteInputs, info=LlavaLiteInfo, dummy_inputs=PictureDummyInputs)
class LlavaLite(PrunedModelMixin, LlavaForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning):
    """vLLM's LLaVA on the visual tokens that a pruning method keeps."""

    model_class: Any = LlavaLiteForConditionalGeneration
    towers = ("vision_tower", "multi_modal_projector")
    kind = Flat
