"""Masks by a stock [`~transformers.SamModel`], one text prompt token each: the wiring of LISA and GLaMM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, SamConfig, SamModel

from transformers_litelvlm.models.devices import index_on, parameters_at_hand, to_device_of
from transformers_litelvlm.models.masks.decoder import DecodedMasks, MaskDecoder, MaskGeometry, register_mask_decoder
from transformers_litelvlm.models.masks.sam_in_chunks import run_in_chunks
from transformers_litelvlm.models.masks.seg_tokens import by_image
from transformers_litelvlm.utils.messages import quoted


@register_mask_decoder(SamConfig)
class SamMaskDecoder(MaskDecoder):
    """SAM, whose image encoder works in chunks. It sees a picture in the corner of a padded square."""

    @classmethod
    def build(cls, config: SamConfig) -> nn.Module:
        model = AutoModel.from_config(config)
        run_in_chunks(model.vision_encoder)
        return model

    @classmethod
    def prompt_size(cls, config: SamConfig) -> int:
        return config.prompt_encoder_config.hidden_size

    @classmethod
    def input_size(cls, config: SamConfig) -> int:
        return config.vision_config.image_size

    def encode(self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None) -> torch.Tensor:
        """Image embeddings (M, C, h, w)."""
        if num_frames is not None:
            raise ValueError("SAM writes masks of pictures, not of videos: `mask_num_frames` must be None.")
        pixel_values = to_device_of(self.mask_model.vision_encoder, pixel_values.to(self.mask_model.dtype))
        return self.mask_model.get_image_embeddings(pixel_values)

    def decode(
        self, features: torch.Tensor, prompts: torch.Tensor, about: list[int], geometry: MaskGeometry
    ) -> DecodedMasks:
        if geometry.resized is None:
            raise ValueError(
                "`reshaped_input_sizes` is missing: LLaVA's processor returns it. Qwen and InternVL need a SAM 2."
            )
        features = features[index_on(features.device, about)]
        decoded = decode_masks(self.mask_model, features, prompts.to(features).unsqueeze(1))
        pred_masks, iou_scores = (each.squeeze(1) for each in decoded)
        sizes = list(zip(geometry.resized, geometry.original))
        side = self.input_size(self.mask_model.config)
        if any(max(size) > side for size in geometry.resized):
            raise ValueError(
                f"`reshaped_input_sizes` must lie inside {side} x {side}, got {quoted(geometry.resized)}."
            )
        logits = [
            resize_masks(masks, side, resized, original)
            for masks, (resized, original) in zip(by_image(pred_masks, about, len(sizes)), sizes, strict=True)
        ]
        iou = [scores.float() for scores in by_image(iou_scores, about, len(sizes))]
        return DecodedMasks(pred_masks, logits, iou)


def decode_masks(
    mask_model: SamModel, image_embeddings: torch.Tensor, prompts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run SAM's decoder with n text prompt tokens per mask; LISA and GLaMM have one.

    Args:
        image_embeddings: (B, C, h, w) of SAM's image encoder.
        prompts: (B, T, n, C).

    Returns:
        Low-resolution logits (B, T, 4h, 4w) and predicted IoU (B, T).
    """
    batch_size, channels, height, width = image_embeddings.shape
    if 0 in prompts.shape[:2]:  # no answer had a [SEG]
        empty = image_embeddings.new_zeros(*prompts.shape[:2], 4 * height, 4 * width)
        return empty, empty[..., 0, 0]
    table, decoder = mask_model.prompt_encoder.no_mask_embed, mask_model.mask_decoder
    # Read, not called, so an offloaded model would not bring them in by itself.
    with parameters_at_hand(table, decoder.iou_token, decoder.mask_tokens, mask_model.shared_image_embedding):
        no_mask = table.weight.reshape(1, channels, 1, 1)
        positions = mask_model.get_image_wide_positional_embeddings()
        masks, iou_scores = decoder(
            image_embeddings=image_embeddings,
            image_positional_embeddings=positions.expand(batch_size, -1, -1, -1),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=no_mask.expand(batch_size, -1, height, width),
            multimask_output=False,
        )
    return masks[:, :, 0], iou_scores[:, :, 0]


def resize_masks(
    low_res_masks: torch.Tensor, input_size: int, resized_size: Sequence[int], original_size: Sequence[int]
) -> torch.Tensor:
    """Undo SAM's preprocessing: (T, h, w) logits -> float32 (T, H, W) at the original size.

    Args:
        input_size: side of the padded square that SAM saw.
        resized_size: (height, width) of the picture inside that square.
        original_size: (height, width) of the picture as it was given.
    """
    if len(low_res_masks) == 0:
        return low_res_masks.new_zeros(0, *original_size, dtype=torch.float32)
    masks = low_res_masks.float().unsqueeze(0)
    masks = torch.nn.functional.interpolate(masks, (input_size, input_size), mode="bilinear", align_corners=False)
    masks = masks[..., : resized_size[0], : resized_size[1]]
    return torch.nn.functional.interpolate(masks, original_size, mode="bilinear", align_corners=False)[0]
