"""InternVL that writes masks of images and videos: states of [SEG] prompt SAM 2 (Sa2VA)."""

from transformers_litelvlm.models.internvl_lite.modeling_internvl_lite import InternVLLiteForConditionalGeneration
from transformers_litelvlm.models.masks.grounding import GroundedMixin


class InternVLLiteForReferringSegmentation(GroundedMixin, InternVLLiteForConditionalGeneration):
    """[`InternVLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder.

    Modifications: those of [`Qwen2_5_VLLiteForReferringSegmentation`].
    """

    without_masks = InternVLLiteForConditionalGeneration.__name__
