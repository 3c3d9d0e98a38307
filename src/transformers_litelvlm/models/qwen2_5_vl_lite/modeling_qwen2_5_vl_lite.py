"""Qwen2.5-VL with visual-token pruning of images and videos: the stock model, told which visual tokens to keep."""

from typing import ClassVar

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from transformers_litelvlm.models.family import pruned_features, pruned_forward
from transformers_litelvlm.models.masks.grounding import MASK_KEYS, GroundedMixin
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen_vl import (
    GUIDANCE_ARGUMENTS,
    QwenVLCausalLMOutputWithPast,
    QwenVLHeadMixin,
    QwenVLModelMixin,
    QwenVLModelOutputWithPast,
)
from transformers_litelvlm.models.upstream import get_vision_window_index


class Qwen2_5_VLLiteModel(QwenVLModelMixin, Qwen2_5_VLModel):
    """[`~transformers.Qwen2_5_VLModel`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both and `forward` prune, see [`PrunedModelMixin`]; `guidance` holds a CLIP if `config.guidance` is
    `"clip"`. The budget of a video is spread evenly over its temporal patches, and a method ranks within each of them.
    With pruning off it is the stock model, bit for bit.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    further_arguments: ClassVar[tuple[str, ...]] = ("second_per_grid_ts", "mm_token_type_ids")
    output_class = QwenVLModelOutputWithPast

    forward = pruned_forward(Qwen2_5_VLModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen2_5_VLModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen2_5_VLModel, "video", *GUIDANCE_ARGUMENTS)

    @property
    def context_block(self) -> int:
        """The last vision block that attends over whole frames, not windows. Raises ValueError if there is none."""
        config = self.config.vision_config
        full = [index for index in config.fullatt_block_indexes if index < config.depth]
        if not full:
            raise ValueError(
                "`guidance='intrinsic'` reads a vision block with full attention, and `fullatt_block_indexes` "
                f"{list(config.fullatt_block_indexes)} names none of the {config.depth} blocks."
            )
        return max(full)

    def in_raster_order(self, states: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        # Inside this tower, patches are kept window by window.
        visual = self.visual
        window_index, _ = get_vision_window_index(
            grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        return states[window_index.to(states.device).argsort()]


class Qwen2_5_VLLiteForConditionalGeneration(QwenVLHeadMixin, Qwen2_5_VLForConditionalGeneration):
    """[`~transformers.Qwen2_5_VLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen2_5_VLLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`]
    and [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the mask decoder of `Qwen2_5_VLLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    base_class = Qwen2_5_VLLiteModel
    output_class = QwenVLCausalLMOutputWithPast

    forward = pruned_forward(Qwen2_5_VLForConditionalGeneration, *GUIDANCE_ARGUMENTS)


class Qwen2_5_VLLiteForReferringSegmentation(GroundedMixin, Qwen2_5_VLLiteForConditionalGeneration):
    """[`Qwen2_5_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder, SAM 2 (UniPixel, Sa2VA).

    Modifications: `seg_head` turns the state of each [SEG] into prompt tokens of `mask_model`, see [`GroundedMixin`];
    [`segment`] and [`generate_masks`] return masks at the original size, see [`ReferringSegmentationMixin`].
    """

    without_masks = Qwen2_5_VLLiteForConditionalGeneration.__name__


Qwen2_5_VLLite = Qwen2_5_VLLiteForConditionalGeneration
