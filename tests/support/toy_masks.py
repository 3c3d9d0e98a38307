"""A toy mask decoder, to see what a new one costs: this file. Not a part of the package."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import AutoConfig, PreTrainedConfig

from transformers_litelvlm.models.masks.decoder import DecodedMasks, MaskDecoder, register_mask_decoder
from transformers_litelvlm.models.masks.seg_tokens import by_image


class ToyMaskConfig(PreTrainedConfig):
    model_type = "toy_masks"
    width: int = 16
    image_size: int = 32


AutoConfig.register("toy_masks", ToyMaskConfig)


@register_mask_decoder(ToyMaskConfig)
class ToyMaskDecoder(MaskDecoder):
    """A mask is the product of its prompt with the features of each patch."""

    @classmethod
    def build(cls, config: ToyMaskConfig) -> nn.Module:
        return nn.Conv2d(3, config.width, kernel_size=4, stride=4)

    @classmethod
    def prompt_size(cls, config: ToyMaskConfig) -> int:
        return config.width

    @classmethod
    def input_size(cls, config: ToyMaskConfig) -> int:
        return config.image_size

    def encode(self, pixel_values, num_frames=None):
        return self.mask_model(pixel_values)

    def decode(self, features, prompts, about, geometry):
        masks = torch.einsum("nc,nchw->nhw", prompts[:, 0], features[about])
        logits = [
            interpolate(of_image[None].float(), tuple(size), mode="bilinear")[0]
            for of_image, size in zip(by_image(masks, about, len(geometry.original)), geometry.original)
        ]
        return DecodedMasks(masks, logits, [of_image.new_zeros(len(of_image)) for of_image in logits])
