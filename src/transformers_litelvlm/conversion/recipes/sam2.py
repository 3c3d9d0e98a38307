"""Sizes of the original SAM 2 code, and its names -> those of [`~transformers.Sam2VideoModel`]."""

from __future__ import annotations

from typing import Any

from transformers_litelvlm.conversion.recipes.sam import PROMPT_AND_DECODER_RENAMES, THREE_LAYERS
from transformers_litelvlm.conversion.renaming import Rename


_MLP = {"0": "proj_in", "1": "proj_out"}

_RENAMES = [
    (r"maskmem_tpos_enc", r"memory_temporal_positional_encoding"),
    (r"no_mem_embed", r"no_memory_embedding"),
    (r"no_mem_pos_enc", r"no_memory_positional_encoding"),
    (r"no_obj_ptr", r"no_object_pointer"),
    (r"no_obj_embed_spatial", r"occlusion_spatial_embedding_parameter"),
    (r"mask_downsample\.(\w+)", r"mask_downsample.\1"),
    (r"obj_ptr_tpos_proj\.(\w+)", r"temporal_positional_encoding_projection_layer.\1"),
    *((rf"obj_ptr_proj\.layers\.{n}\.(\w+)", rf"object_pointer_proj.{name}.\1") for n, name in THREE_LAYERS.items()),
    # Image encoder.
    (r"image_encoder\.trunk\.(pos_embed|pos_embed_window)", r"vision_encoder.backbone.\1"),
    (r"image_encoder\.trunk\.patch_embed\.proj\.(\w+)", r"vision_encoder.backbone.patch_embed.projection.\1"),
    *(
        (
            rf"image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.{n}\.(\w+)",
            rf"vision_encoder.backbone.blocks.\1.mlp.{name}.\2",
        )
        for n, name in _MLP.items()
    ),
    (
        r"image_encoder\.trunk\.blocks\.(\d+)\.norm([12])\.(\w+)",
        r"vision_encoder.backbone.blocks.\1.layer_norm\2.\3",
    ),
    (r"image_encoder\.trunk\.blocks\.(\d+)\.(attn\.\w+|proj)\.(\w+)", r"vision_encoder.backbone.blocks.\1.\2.\3"),
    (r"image_encoder\.neck\.convs\.(\d)\.conv\.(\w+)", r"vision_encoder.neck.convs.\1.\2"),
    # Prompt encoder and mask decoder.
    *PROMPT_AND_DECODER_RENAMES,
    (r"sam_mask_decoder\.(conv_s[01])\.(\w+)", r"mask_decoder.\1.\2"),
    *(
        (
            rf"sam_mask_decoder\.transformer\.layers\.(\d)\.mlp\.layers\.{n}\.(\w+)",
            rf"mask_decoder.transformer.layers.\1.mlp.{name}.\2",
        )
        for n, name in _MLP.items()
    ),
    (r"sam_mask_decoder\.transformer\.(.+attn\w*)\.out_proj\.(\w+)", r"mask_decoder.transformer.\1.o_proj.\2"),
    (r"sam_mask_decoder\.transformer\.(.+attn\w*)\.([qkv]_proj)\.(\w+)", r"mask_decoder.transformer.\1.\2.\3"),
    # Memory.
    (r"memory_attention\.norm\.(\w+)", r"memory_attention.layer_norm.\1"),
    (r"memory_attention\.layers\.(\d+)\.norm(\d)\.(\w+)", r"memory_attention.layers.\1.layer_norm\2.\3"),
    (r"memory_attention\.layers\.(\d+)\.(\w+)\.out_proj\.(\w+)", r"memory_attention.layers.\1.\2.o_proj.\3"),
    (
        r"memory_attention\.layers\.(\d+)\.(linear[12]|\w+\.[qkv]_proj)\.(\w+)",
        r"memory_attention.layers.\1.\2.\3",
    ),
    (r"memory_encoder\.out_proj\.(\w+)", r"memory_encoder.projection.\1"),
    (r"memory_encoder\.pix_feat_proj\.(\w+)", r"memory_encoder.feature_projection.\1"),
    # Convolution, norm, activation, four times; then one convolution more.
    *(
        (
            rf"memory_encoder\.mask_downsampler\.encoder\.{3 * n + part}\.(\w+)",
            rf"memory_encoder.mask_downsampler.layers.{n}.{name}.\1",
        )
        for n in range(4)
        for part, name in enumerate(("conv", "layer_norm"))
    ),
    (r"memory_encoder\.mask_downsampler\.encoder\.12\.(\w+)", r"memory_encoder.mask_downsampler.final_conv.\1"),
    (
        r"memory_encoder\.fuser\.layers\.(\d)\.dwconv\.(\w+)",
        r"memory_encoder.memory_fuser.layers.\1.depthwise_conv.\2",
    ),
    (
        r"memory_encoder\.fuser\.layers\.(\d)\.pwconv([12])\.(\w+)",
        r"memory_encoder.memory_fuser.layers.\1.pointwise_conv\2.\3",
    ),
    (r"memory_encoder\.fuser\.layers\.(\d)\.norm\.(\w+)", r"memory_encoder.memory_fuser.layers.\1.layer_norm.\2"),
    # SAM 2 calls it `gamma`; UniPixel and VideoGLaMM renamed it, for transformers once replaced that word in names.
    (r"memory_encoder\.fuser\.layers\.(\d)\.(?:weight|gamma)", r"memory_encoder.memory_fuser.layers.\1.scale"),
]


def sam2_base_plus(side: int) -> dict[str, Any]:
    """Arguments of [`~transformers.Sam2VideoConfig`] for SAM 2.1 base-plus on squares of `side` pixels."""
    quarter, eighth, sixteenth = side // 4, side // 8, side // 16
    return {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 112,
                "num_attention_heads": 2,
                "embed_dim_per_stage": [112, 224, 448, 896],
                "num_attention_heads_per_stage": [2, 4, 8, 16],
                "blocks_per_stage": [2, 3, 16, 3],
                "global_attention_blocks": [12, 16, 20],
                "window_positional_embedding_background_size": [14, 14],
                "image_size": [side, side],
            },
            "backbone_channel_list": [896, 448, 224, 112],
            "backbone_feature_sizes": [[quarter, quarter], [eighth, eighth], [sixteenth, sixteenth]],
        },
        "prompt_encoder_config": {"image_size": side},
        "image_size": side,
        "memory_attention_rope_feat_sizes": [sixteenth, sixteenth],
        "enable_temporal_pos_encoding_for_object_pointers": True,
        "enable_occlusion_spatial_embedding": True,
    }


def sam2_renames(source_prefix: str = "", target_prefix: str = "") -> list[Rename]:
    """Rules for SAM 2's tensors (615 of the base-plus size).

    Args:
        source_prefix: regular expression, before the names there.
        target_prefix: before the names here.
    """
    encoder = target_prefix + "prompt_encoder."
    return [
        *(Rename(source_prefix + pattern, target_prefix + replacement) for pattern, replacement in _RENAMES),
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
