"""Qwen2.5-VL that writes masks of images and videos: states of [SEG] prompt SAM 2 (UniPixel, Sa2VA)."""

from transformers_litelvlm.models.masks.grounding import GroundedMixin
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForConditionalGeneration,
)


class Qwen2_5_VLLiteForReferringSegmentation(GroundedMixin, Qwen2_5_VLLiteForConditionalGeneration):
    """[`Qwen2_5_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder.

    Modifications: `seg_head` turns the state of each [SEG] into prompt tokens of `mask_model`, see [`GroundedMixin`];
    [`segment`] and [`generate_masks`] return masks at the original size, see [`ReferringSegmentationMixin`].
    """

    without_masks = Qwen2_5_VLLiteForConditionalGeneration.__name__
