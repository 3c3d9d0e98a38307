"""Sizes of the original segment-anything code, and its names -> those of [`~transformers.SamModel`]."""

import re

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
THREE_LAYERS = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}

# Modules there and here, regular expressions whose dots are dots. Of the prompt encoder and the mask decoder, which
# SAM 2 has too, under names that begin with `sam_`.
PROMPT_AND_DECODER_MODULES = {
    "(?:sam_)?prompt_encoder.(not_a_point_embed|no_mask_embed)": r"prompt_encoder.\1",
    "(?:sam_)?prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
    "(?:sam_)?prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
    "(?:sam_)?prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
    "(?:sam_)?prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
    "(?:sam_)?prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
    "(?:sam_)?mask_decoder.(iou_token|mask_tokens|obj_score_token)": r"mask_decoder.\1",
    "(?:sam_)?mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "(?:sam_)?mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "(?:sam_)?mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
    **{
        rf"(?:sam_)?mask_decoder.(output_hypernetworks_mlps.\d|\w+_head).layers.{n}": rf"mask_decoder.\1.{name}"
        for n, name in THREE_LAYERS.items()
    },
    r"(?:sam_)?mask_decoder.transformer.layers.(\d).norm(\d)": r"mask_decoder.transformer.layers.\1.layer_norm\2",
    "(?:sam_)?mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
}
_MODULES = {
    "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
    r"image_encoder.blocks.(\d+).norm([12])": r"vision_encoder.layers.\1.layer_norm\2",
    "image_encoder.neck.0": "vision_encoder.neck.conv1",
    "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
    "image_encoder.neck.2": "vision_encoder.neck.conv2",
    "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
    r"prompt_encoder.point_embeddings.(\d)": r"prompt_encoder.point_embed.\1",
    **PROMPT_AND_DECODER_MODULES,
}
_TENSORS = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    r"image_encoder.blocks.(\d+).(attn|mlp).(.+)": r"vision_encoder.layers.\1.\2.\3",
    # One matrix under two names; the other one is tied to this one.
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
    r"mask_decoder.transformer.layers.(\d).(.+)": r"mask_decoder.transformer.layers.\1.\2",
    "mask_decoder.transformer.(final_attn_token_to_image..+)": r"mask_decoder.transformer.\1",
}


def renames_of(
    modules: dict[str, str], tensors: dict[str, str], source_prefix: str, target_prefix: str
) -> list[Rename]:
    """Rules for all tensors of modules, and for single ones; `source_prefix` is a regular expression as it is."""
    of_modules = {rf"{name}.(\w+)": rf"{modules[name]}.\{re.compile(name).groups + 1}" for name in modules}
    return [
        Rename(source_prefix + re.sub(r"\.(?![+*])", r"\\.", pattern), target_prefix + replacement)
        for pattern, replacement in {**of_modules, **tensors}.items()
    ]


def sam_renames(source_prefix: str = "", target_prefix: str = "") -> list[Rename]:
    """Rules for SAM's 594 tensors; `source_prefix`, a regular expression, is before the names there."""
    return renames_of(_MODULES, _TENSORS, source_prefix, target_prefix)
