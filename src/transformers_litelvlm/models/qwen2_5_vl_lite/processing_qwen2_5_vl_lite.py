"""Processor of the Qwen2.5-VL family: the prompt, images, videos and the sentences that guide pruning."""

from __future__ import annotations

from transformers import BatchFeature, Qwen2_5_VLProcessor

from transformers_litelvlm.models.processing.qwen_vl import QwenVLProcessorMixin
from transformers_litelvlm.models.processing.segmentation import SegmentationInputsMixin
from transformers_litelvlm.models.qwen2_5_vl_lite.unipixel_prompts import (
    ANSWER_TEMPLATES,
    GROUNDING_MEDIA,
    QUESTION_TEMPLATES,
    SEG_TOKEN,
)
from transformers_litelvlm.models.qwen2_5_vl_lite.video_processing_qwen2_5_vl_lite import Qwen2_5_VLLiteVideoProcessor


class Qwen2_5_VLLiteProcessor(SegmentationInputsMixin, QwenVLProcessorMixin, Qwen2_5_VLProcessor):
    """[`~transformers.Qwen2_5_VLProcessor`] that also prepares the sentences that guide pruning.

    Modifications: `processor(images, text, videos, expressions=...)` adds `guidance_input_ids` and
    `guidance_attention_mask`, (M, T, L) for M images and videos, those of the images first. Prompts keep upstream's
    full number of placeholders, whatever the pruning. Pictures are turned upright (EXIF) and converted to RGB. Images
    and videos run on PIL backends, so that results do not depend on whether torchvision is installed, and videos work
    without it.

    Sentences are in the language model's tokens, which is what a model with `guidance="intrinsic"` (the default)
    reads. For `guidance="clip"` load the processor with `guidance_model=`: then they are in CLIP's tokens, and
    `guidance_pixel_values` (frames, 3, S, S) holds every image and the first frame of every temporal patch of a video,
    squeezed into CLIP's square without cropping.

    Args:
        image_processor, tokenizer, video_processor, chat_template: upstream's.
        guidance_tokenizer, guidance_image_processor: those of the CLIP, for `guidance="clip"` only.
        user_marker, assistant_marker (`str`): what starts a turn in a rendered prompt; they find the question where
            `expressions` is not given.
        mask_image_size, question_templates, answer_templates, seg_token, normalize_expressions,
            one_expression_per_dialogue, grounding_media: of checkpoints that write masks, see
            [`SegmentationInputsMixin`]; the defaults are UniPixel's.
    """

    skip_tensor_conversion = [*Qwen2_5_VLProcessor.skip_tensor_conversion, "first_frames"]
    video_processor_type = Qwen2_5_VLLiteVideoProcessor

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        guidance_tokenizer=None,
        guidance_image_processor=None,
        user_marker="<|im_start|>user",
        assistant_marker="<|im_start|>assistant",
        mask_image_size=None,
        question_templates=QUESTION_TEMPLATES,
        answer_templates=ANSWER_TEMPLATES,
        seg_token=SEG_TOKEN,
        normalize_expressions=True,
        one_expression_per_dialogue=True,
        grounding_media=GROUNDING_MEDIA,
        **kwargs,
    ):
        guidance = (guidance_tokenizer, guidance_image_processor)
        image_processor = self.set_parts(image_processor, video_processor, *guidance, user_marker, assistant_marker)
        self.set_segmentation(
            mask_image_size,
            question_templates,
            answer_templates,
            seg_token,
            normalize_expressions,
            one_expression_per_dialogue,
            grounding_media,
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def units_of_boxes(self, features: BatchFeature) -> list[tuple[float, float]]:
        # Pixels of the picture as it was resized for the model.
        patch = self.image_processor.patch_size
        return [(float(w * patch), float(h * patch)) for _, h, w in features["image_grid_thw"].tolist()]
