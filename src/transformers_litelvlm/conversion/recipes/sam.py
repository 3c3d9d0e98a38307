"""Sizes of the original segment-anything code, and its names -> those of [`~transformers.SamModel`]."""

from __future__ import annotations

from transformers_litelvlm.conversion.renaming import Rename


# Arguments of `SamConfig`. Its two-way transformer normalises with 1e-5, which is not SamModel's default.
SAM_VIT_H = {
    "vision_config": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    },
    "mask_decoder_config": {"layer_norm_eps": 1e-5},
}

# A perceptron of three layers: the first and the last have names of their own.
THREE_LAYERS = {"0": "proj_in", "1": r"layers.0", "2": "proj_out"}

# Of the prompt encoder and the mask decoder, which SAM 2 has too, under names that begin with `sam_`.
PROMPT_AND_DECODER_RENAMES = [
    (r"(?:sam_)?prompt_encoder\.(not_a_point_embed|no_mask_embed)\.weight", r"prompt_encoder.\1.weight"),
    (r"(?:sam_)?prompt_encoder\.mask_downscaling\.0\.(\w+)", r"prompt_encoder.mask_embed.conv1.\1"),
    (r"(?:sam_)?prompt_encoder\.mask_downscaling\.1\.(\w+)", r"prompt_encoder.mask_embed.layer_norm1.\1"),
    (r"(?:sam_)?prompt_encoder\.mask_downscaling\.3\.(\w+)", r"prompt_encoder.mask_embed.conv2.\1"),
    (r"(?:sam_)?prompt_encoder\.mask_downscaling\.4\.(\w+)", r"prompt_encoder.mask_embed.layer_norm2.\1"),
    (r"(?:sam_)?prompt_encoder\.mask_downscaling\.6\.(\w+)", r"prompt_encoder.mask_embed.conv3.\1"),
    (r"(?:sam_)?mask_decoder\.(iou_token|mask_tokens|obj_score_token)\.weight", r"mask_decoder.\1.weight"),
    (r"(?:sam_)?mask_decoder\.output_upscaling\.0\.(\w+)", r"mask_decoder.upscale_conv1.\1"),
    (r"(?:sam_)?mask_decoder\.output_upscaling\.1\.(\w+)", r"mask_decoder.upscale_layer_norm.\1"),
    (r"(?:sam_)?mask_decoder\.output_upscaling\.3\.(\w+)", r"mask_decoder.upscale_conv2.\1"),
    *(
        (
            r"(?:sam_)?mask_decoder\.(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)"
            rf"\.layers\.{n}\.(\w+)",
            rf"mask_decoder.\1.{name}.\2",
        )
        for n, name in THREE_LAYERS.items()
    ),
    (
        r"(?:sam_)?mask_decoder\.transformer\.layers\.(\d)\.norm(\d)\.(\w+)",
        r"mask_decoder.transformer.layers.\1.layer_norm\2.\3",
    ),
    (
        r"(?:sam_)?mask_decoder\.transformer\.norm_final_attn\.(\w+)",
        r"mask_decoder.transformer.layer_norm_final_attn.\1",
    ),
]

_RENAMES = [
    (r"image_encoder\.pos_embed", r"vision_encoder.pos_embed"),
    (r"image_encoder\.patch_embed\.proj\.(\w+)", r"vision_encoder.patch_embed.projection.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(\w+)", r"vision_encoder.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(\d+)\.(attn|mlp)\.(.+)", r"vision_encoder.layers.\1.\2.\3"),
    (r"image_encoder\.neck\.0\.(\w+)", r"vision_encoder.neck.conv1.\1"),
    (r"image_encoder\.neck\.1\.(\w+)", r"vision_encoder.neck.layer_norm1.\1"),
    (r"image_encoder\.neck\.2\.(\w+)", r"vision_encoder.neck.conv2.\1"),
    (r"image_encoder\.neck\.3\.(\w+)", r"vision_encoder.neck.layer_norm2.\1"),
    # One matrix under two names; the other one is tied to this one.
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", r"shared_image_embedding.positional_embedding"),
    (r"prompt_encoder\.point_embeddings\.(\d)\.weight", r"prompt_encoder.point_embed.\1.weight"),
    *PROMPT_AND_DECODER_RENAMES,
    (r"mask_decoder\.transformer\.layers\.(\d)\.(.+)", r"mask_decoder.transformer.layers.\1.\2"),
    (r"mask_decoder\.transformer\.(final_attn_token_to_image\..+)", r"mask_decoder.transformer.\1"),
]


def sam_renames(source_prefix: str = "", target_prefix: str = "") -> list[Rename]:
    """Rules for SAM's 594 tensors; `source_prefix`, a regular expression, is before the names there."""
    return [Rename(source_prefix + pattern, target_prefix + replacement) for pattern, replacement in _RENAMES]
