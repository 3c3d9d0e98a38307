"""Qwen3-VL that writes masks of images and videos: states of [SEG] prompt SAM 2 (Sa2VA)."""

from transformers_litelvlm.models.masks.grounding import GroundedMixin
from transformers_litelvlm.models.qwen3_vl_lite.modeling_qwen3_vl_lite import Qwen3_VLLiteForConditionalGeneration


class Qwen3_VLLiteForReferringSegmentation(GroundedMixin, Qwen3_VLLiteForConditionalGeneration):
    """[`Qwen3_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder.

    Modifications: those of [`Qwen2_5_VLLiteForReferringSegmentation`].
    """

    without_masks = Qwen3_VLLiteForConditionalGeneration.__name__
