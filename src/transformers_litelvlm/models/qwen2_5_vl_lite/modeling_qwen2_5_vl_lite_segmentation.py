"""Qwen2.5-VL that writes masks of images and videos: two tokens from each [SEG] state prompt SAM 2 (UniPixel)."""

import torch
from torch import nn

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.models.masks import sam2  # noqa: F401  registers its decoder
from transformers_litelvlm.models.masks.decoder import mask_decoder_class
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin, require_mask_parts
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForConditionalGeneration,
)
from transformers_litelvlm.models.upstream import Qwen2_5_VLRMSNorm


NUM_HIDDEN_TOKENS = 2


class Qwen2_5_VLLiteForReferringSegmentation(ReferringSegmentationMixin, Qwen2_5_VLLiteForConditionalGeneration):
    """[`Qwen2_5_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder.

    Modifications: `seg_head` turns the hidden state before each [SEG] into two prompt tokens of `mask_model`;
    [`segment`] and [`generate_masks`] return masks at the original size, see [`ReferringSegmentationMixin`]. UniPixel
    reads the state before the language model's final norm, so here the last of the hidden states that
    `output_hidden_states` returns is that one (`tie_last_hidden_states` of the config).
    """

    # Everything is expected here: nothing of the folder is left over.
    _keys_to_ignore_on_load_unexpected: list[str] = []
    mask_modality = "video"  # as in UniPixel, a picture is a video of one frame
    reads_before_norm = True

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        require_mask_parts(config, type(self).__name__, "Qwen2_5_VLLiteForConditionalGeneration")
        config.text_config.tie_last_hidden_states = False
        super().__init__(config)
        decoder, hidden_size = mask_decoder_class(config.mask_config), config.text_config.hidden_size
        self.seg_head = nn.Sequential(
            Qwen2_5_VLRMSNorm(hidden_size),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, NUM_HIDDEN_TOKENS * decoder.prompt_size(config.mask_config)),
        )
        self.mask_model = decoder.build(config.mask_config)
        self.post_init()

    def prompts_of_seg(self, states: torch.Tensor) -> torch.Tensor:
        prompts = self.seg_head(to_device_of(self.seg_head[1], states))
        return prompts.unflatten(-1, (NUM_HIDDEN_TOKENS, -1))


__all__ = ["Qwen2_5_VLLiteForReferringSegmentation"]
