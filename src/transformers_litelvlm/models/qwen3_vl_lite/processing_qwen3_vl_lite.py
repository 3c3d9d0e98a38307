"""Processor of the Qwen3-VL family: the prompt, images, videos between timestamps, and the sentences of guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Qwen2VLImageProcessorPil, Qwen3VLProcessor

from transformers_litelvlm.models.processing.qwen_vl import QwenVLProcessorMixin
from transformers_litelvlm.models.processing.segmentation import SegmentationInputsMixin
from transformers_litelvlm.models.qwen2_5_vl_lite.video_processing_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteVideoProcessor,
    check_frame_rate,
)
from transformers_litelvlm.models.upstream import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    Qwen3VLVideoProcessor,
    SizeDict,
    VideoMetadata,
    smart_resize_video,
)


class Qwen3_VLLiteVideoProcessor(Qwen2_5_VLLiteVideoProcessor):
    """Videos to patches on PIL, as [`Qwen2_5_VLLiteVideoProcessor`], with the rules of upstream's
    [`~transformers.Qwen3VLVideoProcessor`]: two frames a second, and sizes that limit the pixels of the whole video.
    """

    size = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    patch_size = 16
    do_sample_frames = True
    fps = 2
    cap_pixels_per_frame = None
    max_video_tokens = 768

    def sample_frames(self, metadata: VideoMetadata, *args: Any, **kwargs: Any) -> np.ndarray:
        check_frame_rate(kwargs.get("fps"), "`fps`")
        return Qwen3VLVideoProcessor.sample_frames(self, metadata, *args, **kwargs)

    def _decode_and_sample_videos(self, videos, video_metadata, do_sample_frames=None, sample_indices_fn=None):
        sampling = (do_sample_frames, sample_indices_fn)
        videos, video_metadata = super()._decode_and_sample_videos(videos, video_metadata, *sampling)
        for video, metadata in zip(videos, video_metadata, strict=True):
            if metadata.frames_indices is None:  # timestamps are made from them
                metadata.frames_indices = list(range(len(video)))
        return videos, video_metadata

    def resize_frame(self, frame: np.ndarray, num_frames: int, size: Any, resample: Any, factor: int) -> np.ndarray:
        # Upstream refuses a video with fewer frames than a temporal patch; here its last frame is repeated.
        num_frames = max(num_frames, self.temporal_patch_size)
        largest = size.longest_edge
        if self.cap_pixels_per_frame:
            of_frame = min(self.max_video_tokens * factor**2, size.longest_edge // num_frames)
            largest = max(of_frame, int(size.shortest_edge * 1.05)) * num_frames
        height, width = smart_resize_video(
            num_frames,
            *frame.shape[-2:],
            temporal_factor=self.temporal_patch_size,
            factor=factor,
            min_pixels=size.shortest_edge,
            max_pixels=largest,
        )
        by_size = super(Qwen2VLImageProcessorPil, self).resize
        return by_size(image=frame, size=SizeDict(height=height, width=width), resample=resample)


class Qwen3_VLLiteProcessor(SegmentationInputsMixin, QwenVLProcessorMixin, Qwen3VLProcessor):
    """[`~transformers.Qwen3VLProcessor`] that also prepares the sentences that guide pruning.

    Modifications: as in [`Qwen2_5_VLLiteProcessor`], `processor(images, text, videos, expressions=...)` adds
    `guidance_input_ids` and `guidance_attention_mask`, and `guidance_pixel_values` where it was loaded with
    `guidance_model=`; images and videos run on PIL. Prompts are upstream's, with a timestamp before every temporal
    patch of a video, for which `video_metadata` has to say how many frames a second it has.

    Args:
        image_processor, tokenizer, video_processor, chat_template: upstream's.
        guidance_tokenizer, guidance_image_processor: those of the CLIP, for `guidance="clip"` only.
        user_marker, assistant_marker (`str`): what starts a turn in a rendered prompt; they find the question where
            `expressions` is not given.
        mask_image_size, question_templates, answer_templates, seg_token, normalize_expressions,
            one_expression_per_dialogue, grounding_media: of checkpoints that write masks, see
            [`SegmentationInputsMixin`].
    """

    skip_tensor_conversion = [*Qwen3VLProcessor.skip_tensor_conversion, "first_frames"]
    video_processor_type = Qwen3_VLLiteVideoProcessor

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
        question_templates=("Please segment {expression} in this {medium}.",),
        answer_templates=("It is [SEG].",),
        seg_token="[SEG]",
        normalize_expressions=False,
        one_expression_per_dialogue=True,
        grounding_media=None,
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
            grounding_media or {"pictures_as": "image"},
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
