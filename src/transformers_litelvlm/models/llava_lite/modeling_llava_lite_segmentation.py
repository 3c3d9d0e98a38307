"""LLaVA that writes masks: the language model's [SEG] states prompt the mask decoder of a SAM (LISA, GLaMM)."""

import torch
from torch import nn

from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.masks import sam  # noqa: F401  registers its decoder
from transformers_litelvlm.models.masks.decoder import mask_decoder_class
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin, require_mask_parts


class LlavaLiteForReferringSegmentation(ReferringSegmentationMixin, LlavaLiteForConditionalGeneration):
    """[`LlavaLiteForConditionalGeneration`] with a [SEG] projection and a mask decoder.

    Modifications: `text_hidden_fcs` projects the hidden state before each [SEG] to a prompt of `mask_model`;
    [`segment`] and [`generate_masks`] return masks at the original size, see [`ReferringSegmentationMixin`]. The
    wiring is that of LISA and GLaMM; their names for the parts are kept.
    """

    # Everything is expected here: nothing of the folder is left over.
    _keys_to_ignore_on_load_unexpected: list[str] = []
    mask_modality = "image"

    def __init__(self, config: LlavaLiteConfig) -> None:
        require_mask_parts(config, type(self).__name__, "LlavaLiteForConditionalGeneration")
        super().__init__(config)
        decoder, hidden_size = mask_decoder_class(config.mask_config), config.text_config.hidden_size
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, decoder.prompt_size(config.mask_config)),
        )
        self.mask_model = decoder.build(config.mask_config)
        self.post_init()

    def prompts_of_seg(self, states: torch.Tensor) -> torch.Tensor:
        return self.text_hidden_fcs(states).unsqueeze(2)
