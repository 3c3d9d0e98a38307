"""Sizes of the original SAM 2 code, and its names -> those of [`~transformers.Sam2VideoModel`]."""

from __future__ import annotations

from typing import Any

from transformers_litelvlm.conversion.recipes.sam import PROMPT_AND_DECODER_MODULES, THREE_LAYERS, renames_of
from transformers_litelvlm.conversion.renaming import Rename


# A file of a checkpoint with other sizes than the published ones: arguments of `Sam2VideoConfig`.
SAM2_SIZES_NAME = "sam2_config.json"

_MLP = {"0": "proj_in", "1": "proj_out"}

_MODULES = {
    "mask_downsample": "mask_downsample",
    "obj_ptr_tpos_proj": "temporal_positional_encoding_projection_layer",
    **{f"obj_ptr_proj.layers.{n}": f"object_pointer_proj.{name}" for n, name in THREE_LAYERS.items()},
    # Image encoder.
    "image_encoder.trunk.patch_embed.proj": "vision_encoder.backbone.patch_embed.projection",
    **{
        rf"image_encoder.trunk.blocks.(\d+).mlp.layers.{n}": rf"vision_encoder.backbone.blocks.\1.mlp.{name}"
        for n, name in _MLP.items()
    },
    r"image_encoder.trunk.blocks.(\d+).norm([12])": r"vision_encoder.backbone.blocks.\1.layer_norm\2",
    r"image_encoder.trunk.blocks.(\d+).(attn.\w+|proj)": r"vision_encoder.backbone.blocks.\1.\2",
    r"image_encoder.neck.convs.(\d).conv": r"vision_encoder.neck.convs.\1",
    # Prompt encoder and mask decoder.
    **PROMPT_AND_DECODER_MODULES,
    "sam_mask_decoder.(conv_s[01])": r"mask_decoder.\1",
    **{
        rf"sam_mask_decoder.transformer.layers.(\d).mlp.layers.{n}": rf"mask_decoder.transformer.layers.\1.mlp.{name}"
        for n, name in _MLP.items()
    },
    r"sam_mask_decoder.transformer.(.+attn\w*).out_proj": r"mask_decoder.transformer.\1.o_proj",
    r"sam_mask_decoder.transformer.(.+attn\w*).([qkv]_proj)": r"mask_decoder.transformer.\1.\2",
    # Memory.
    "memory_attention.norm": "memory_attention.layer_norm",
    r"memory_attention.layers.(\d+).norm(\d)": r"memory_attention.layers.\1.layer_norm\2",
    r"memory_attention.layers.(\d+).(\w+).out_proj": r"memory_attention.layers.\1.\2.o_proj",
    r"memory_attention.layers.(\d+).(linear[12]|\w+.[qkv]_proj)": r"memory_attention.layers.\1.\2",
    "memory_encoder.out_proj": "memory_encoder.projection",
    "memory_encoder.pix_feat_proj": "memory_encoder.feature_projection",
    # Convolution, norm, activation, four times; then one convolution more.
    **{
        f"memory_encoder.mask_downsampler.encoder.{3 * n + part}": f"memory_encoder.mask_downsampler.layers.{n}.{name}"
        for n in range(4)
        for part, name in enumerate(("conv", "layer_norm"))
    },
    "memory_encoder.mask_downsampler.encoder.12": "memory_encoder.mask_downsampler.final_conv",
    r"memory_encoder.fuser.layers.(\d).dwconv": r"memory_encoder.memory_fuser.layers.\1.depthwise_conv",
    r"memory_encoder.fuser.layers.(\d).pwconv([12])": r"memory_encoder.memory_fuser.layers.\1.pointwise_conv\2",
    r"memory_encoder.fuser.layers.(\d).norm": r"memory_encoder.memory_fuser.layers.\1.layer_norm",
}
_TENSORS = {
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_embed": "no_memory_embedding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
    "image_encoder.trunk.(pos_embed|pos_embed_window)": r"vision_encoder.backbone.\1",
    # SAM 2 calls it `gamma`; UniPixel, VideoGLaMM and Sa2VA renamed it, for transformers once replaced that word.
    r"memory_encoder.fuser.layers.(\d).(?:g_weight|weight|gamma)": r"memory_encoder.memory_fuser.layers.\1.scale",
}


def sam2_base_plus(side: int) -> dict[str, Any]:
    """Arguments of [`~transformers.Sam2VideoConfig`] for SAM 2.1 base-plus on squares of `side` pixels."""
    hiera = {
        "hidden_size": 112,
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    }
    return _sizes(side, hiera, is_2_1=True)


def sam2_large(side: int) -> dict[str, Any]:
    """Arguments of [`~transformers.Sam2VideoConfig`] for SAM 2.0 large on squares of `side` pixels."""
    hiera = {
        "hidden_size": 144,
        "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43],
        "window_positional_embedding_background_size": [7, 7],
        "window_size_per_stage": [8, 4, 16, 8],
    }
    return _sizes(side, hiera, is_2_1=False)


def _sizes(side: int, hiera: dict[str, Any], is_2_1: bool) -> dict[str, Any]:
    """Args: hiera: of the image encoder; is_2_1: whether what SAM 2.1 has more than 2.0 is there."""
    widths = [hiera["hidden_size"] * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "num_attention_heads": 2,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "image_size": [side, side],
        **hiera,
    }
    return {
        "vision_config": {
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // shrunk] * 2 for shrunk in (4, 8, 16)],
        },
        "prompt_encoder_config": {"image_size": side},
        "image_size": side,
        "memory_attention_rope_feat_sizes": [side // 16] * 2,
        "enable_temporal_pos_encoding_for_object_pointers": is_2_1,
        "enable_occlusion_spatial_embedding": is_2_1,
    }


def sam2_renames(source_prefix: str = "", target_prefix: str = "") -> list[Rename]:
    """Rules for SAM 2's tensors (615 of the base-plus size); `source_prefix` is a regular expression."""
    encoder = target_prefix + "prompt_encoder."
    return [
        *renames_of(_MODULES, _TENSORS, source_prefix, target_prefix),
        Rename(
            source_prefix + r"sam_prompt_encoder\.point_embeddings\.(?P<row>\d)\.weight",
            encoder + "point_embed.weight",
            row=r"\g<row>",
        ),
        # Sam2VideoModel has this matrix twice, and does not tie the two.
        Rename(
            source_prefix + r"sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
            target_prefix + "shared_image_embedding.positional_embedding",
            copy=encoder + "shared_embedding.positional_embedding",
        ),
    ]
