"""Published checkpoints of the LLaVA family -> one self-contained checkpoint of ours: stock LLaVA, GLaMM, LISA.

Neither holds the CLIP text tower and the projections that guide pruning, and GLaMM and LISA lack the vision tower too:
these come from the CLIP checkpoint. Names, shapes and sizes are those of the published files; nothing is retrained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    SamConfig,
    SamImageProcessorPil,
)

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.conversion.convert import Conversion, MustEqual
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.legacy_tokenizer import load_legacy_tokenizer
from transformers_litelvlm.conversion.recipes.sam import sam_renames
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.hub.model_card import write_converted_card
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.grounding_prompts import PROMPTS
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor
from transformers_litelvlm.models.remote_code import reference_code, write_code


SEG_TOKEN = "[SEG]"

# The originals hard-code ViT-H. Its two-way transformer normalises with 1e-5, which is not SamModel's default.
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

# Sizes of the SAM part, for checkpoints that are not ViT-H; the published ones do not have this file.
SAM_SIZES_NAME = "grounding_encoder_config.json"

_LLAMA_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "initializer_range",
    "attention_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

_ROTARY = Drop(r".*\.rotary_emb\.inv_freq", "a buffer that the config determines")
_POSITION_IDS = Drop(r".*\.position_ids", "a buffer that counts from 0")
_OWN_TOWER = "the checkpoint brings its own vision tower"

Rules = list[Rename | Drop]

_GUIDANCE_RULES: Rules = [
    _POSITION_IDS,
    Drop("logit_scale", "scales CLIP's contrastive loss, which nothing here computes"),
    Rename(r"text_model\.(.+)", r"model.guidance.text_model.\1"),
    Rename(r"(text|visual)_projection\.weight", r"model.guidance.\1_projection.weight"),
]
_CLIP_RULES: Rules = [*_GUIDANCE_RULES, Rename(r"vision_model\.(.+)", r"model.vision_tower.\1")]

# Both the names that transformers writes today and those of the published llava-hf checkpoints.
_LLAVA_RULES: Rules = [
    _ROTARY,
    _POSITION_IDS,
    Rename(r"(?:language_model\.)?lm_head\.weight", "lm_head.weight"),
    Rename(r"(?:language_model\.model|model\.language_model)\.(.+)", r"model.language_model.\1"),
    Rename(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)", r"model.vision_tower.\1"),
    Rename(r"(?:model\.)?multi_modal_projector\.(.+)", r"model.multi_modal_projector.\1"),
]

_LLAMA_RULES: Rules = [
    _ROTARY,
    Rename(r"lm_head\.weight", "lm_head.weight"),
    Rename(r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    Rename(r"model\.mm_projector\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    Rename(r"model\.mm_projector\.0\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    Rename(r"model\.mm_projector\.2\.(weight|bias)", r"model.multi_modal_projector.linear_2.\1"),
    Rename(r"model\.text_hidden_fcs\.0\.([02])\.(weight|bias)", r"text_hidden_fcs.\1.\2"),
]

_GROUNDING_RULES: dict[str, Rules] = {
    "glamm": [
        *_LLAMA_RULES,
        *sam_renames(r"model\.grounding_encoder\.", "mask_model."),
        Drop(r"model\.region_encoder\..+", "reads box prompts, which referring segmentation does not have"),
    ],
    "lisa": [*_LLAMA_RULES, *sam_renames(r"model\.visual_model\.", "mask_model.")],
}


def llava_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How a stock LLaVA checkpoint (llava-hf/llava-1.5-7b-hf) becomes a [`LlavaLiteForConditionalGeneration`].

    Args:
        source: the checkpoint.
        clip: folder or Hub id of the CLIP that its vision tower comes from; default: `guidance_model` of
            [`LlavaLiteConfig`].

    Raises:
        ConversionError: if a file is missing, or the config is not one of LLaVA.
    """
    published = _read_config(source)
    if "text_config" not in published or published.get("model_type") not in ("llava", "llava_lite"):
        raise ConversionError(
            f"{source}/config.json is no LLaVA of Transformers (model_type {published.get('model_type')!r}). "
            "For the original GLaMM and LISA use `convert glamm` and `convert lisa`."
        )
    clip_source = CheckpointSource(clip or LlavaLiteConfig.guidance_model)
    clip_config = _read_clip_config(clip_source)
    config = LlavaLiteConfig.from_dict({**published, "model_type": LlavaLiteConfig.model_type, "architectures": None})
    _set_guidance(config, clip_source, clip_config)
    processor = LlavaLiteProcessor.from_pretrained(
        source.path_or_id, revision=source.commit_hash or source.revision, guidance_tokenizer=clip_source.path_or_id
    )
    guidance_only: Rules = [*_GUIDANCE_RULES, Drop(r"vision_model\..+", _OWN_TOWER)]
    llava, clip_part = Part("llava", source, _LLAVA_RULES), Part("clip", clip_source, guidance_only)
    last = config.vision_config.num_hidden_layers - 1
    same = ("embeddings.patch_embedding.weight", f"encoder.layers.{last}.self_attn.q_proj.weight")
    must_equal = [
        MustEqual(
            ("llava", key),
            ("clip", f"vision_model.{name}"),
            f"{clip_source} is not the CLIP that the vision tower comes from; name the right one with --clip",
        )
        for name in same
        for key in source.tensors()
        if key.endswith(f"vision_tower.vision_model.{name}") or key.endswith(f"vision_tower.{name}")
    ]
    return _conversion("llava", LlavaLiteForConditionalGeneration, config, processor, [llava, clip_part], must_equal)


def glamm_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How MBZUAI/GLaMM-RefSeg (also GCG and FullScope) becomes a [`LlavaLiteForReferringSegmentation`].

    Args:
        source: the checkpoint.
        clip: folder or Hub id of its CLIP; default: the one that its config names.

    Raises:
        ConversionError: if a file is missing, or the config says something that this family does not have.
    """
    return _grounding_conversion("glamm", source, clip)


def lisa_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How xinlai/LISA-7B-v1 becomes a [`LlavaLiteForReferringSegmentation`]; see [`glamm_conversion`]."""
    return _grounding_conversion("lisa", source, clip)


def _grounding_conversion(family: str, source: CheckpointSource, clip: str | None) -> Conversion:
    published = _read_config(source)
    _check_original(source, published)
    clip_source = CheckpointSource(clip or published["mm_vision_tower"])
    clip_config = _read_clip_config(clip_source)
    tokenizer = _tokenizer(source)
    config = grounding_config(source, published, clip_config, tokenizer)
    _set_guidance(config, clip_source, clip_config)
    processor = grounding_processor(family, config, tokenizer, clip_source)
    parts = [Part(family, source, _GROUNDING_RULES[family]), Part("clip", clip_source, _CLIP_RULES)]
    return _conversion(family, LlavaLiteForReferringSegmentation, config, processor, parts)


def grounding_config(
    source: CheckpointSource, published: dict[str, Any], clip_config: CLIPConfig, tokenizer: Any
) -> LlavaLiteConfig:
    """[`LlavaLiteConfig`] of an original GLaMM or LISA, from its config.json, its tensors and its tokenizer."""
    tensors = source.tensors()
    if "model.embed_tokens.weight" not in tensors:
        raise ConversionError(f"{source} has no model.embed_tokens.weight: is it a GLaMM or LISA checkpoint?")
    sizes = source.read_json(SAM_SIZES_NAME)
    mask_config = SamConfig(**(SAM_VIT_H if sizes is None else sizes["hf_config"]))
    text_fields = {name: published[name] for name in _LLAMA_FIELDS if published.get(name) is not None}
    return LlavaLiteConfig(
        vision_config=clip_config.vision_config,
        text_config=LlamaConfig(vocab_size=tensors["model.embed_tokens.weight"].shape[0], **text_fields),
        mask_config=mask_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(clip_config.vision_config.image_size // clip_config.vision_config.patch_size) ** 2,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        vision_feature_layer=published.get("mm_vision_select_layer", -2),
        projector_type="linear" if "model.mm_projector.weight" in tensors else "mlp2x_gelu",
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        dtype=published.get("torch_dtype"),
    )


def grounding_processor(
    family: str, config: LlavaLiteConfig, tokenizer: Any, clip_source: CheckpointSource
) -> LlavaLiteProcessor:
    """Processor of GLaMM (`family` "glamm") or LISA ("lisa"): CLIP's centre crop, SAM's padding, their prompts."""
    published = clip_source.read_json("preprocessor_config.json")
    if published is None:
        raise ConversionError(f"{clip_source} has no preprocessor_config.json: it is part of a CLIP checkpoint.")
    side = config.mask_config.vision_config.image_size
    return LlavaLiteProcessor(
        image_processor=CLIPImageProcessorPil.from_dict(published),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        guidance_tokenizer=AutoTokenizer.from_pretrained(
            clip_source.path_or_id, revision=clip_source.commit_hash or clip_source.revision
        ),
        mask_image_processor=SamImageProcessorPil(
            size={"longest_edge": side}, pad_size={"height": side, "width": side}
        ),
        **PROMPTS[family],
    )


def _conversion(
    family: str,
    model_class: type[PreTrainedModel],
    config: LlavaLiteConfig,
    processor: LlavaLiteProcessor,
    parts: list[Part],
    must_equal: list[MustEqual] | None = None,
) -> Conversion:
    with torch.device("meta"):
        model = model_class(config)
    config.architectures = [model_class.__name__]

    def write_rest(folder: Path, dtype: torch.dtype | None) -> None:
        if dtype is not None:
            config.dtype = dtype
        processor.save_pretrained(folder)
        PruningConfig().save_pretrained(folder)
        text = config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
        ).save_pretrained(folder)
        write_converted_card(folder, family, [part.source for part in parts], config, processor)
        write_code(folder, reference_code(config))
        config.save_pretrained(folder)

    return Conversion(
        family=family,
        parts=parts,
        targets={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(model.all_tied_weights_keys),
        must_equal=must_equal or [],
        write_rest=write_rest,
    )


def _set_guidance(config: LlavaLiteConfig, source: CheckpointSource, clip_config: CLIPConfig) -> None:
    config.guidance_text_config = clip_config.text_config
    config.guidance_projection_dim = clip_config.projection_dim
    if not source.is_local:
        config.guidance_model = source.path_or_id


def _read_config(source: CheckpointSource, way_out: str = "give the folder or the Hub id of a checkpoint") -> dict:
    config = source.read_json("config.json")
    if config is None:
        where = "in that folder" if source.is_local else "on the Hub or in the cache (is there a connection?)"
        raise ConversionError(f"{source}: no config.json {where}; {way_out}.")
    return config


def _read_clip_config(source: CheckpointSource) -> CLIPConfig:
    return CLIPConfig.from_dict(_read_config(source, "--clip names the CLIP that the vision tower comes from"))


def _check_original(source: CheckpointSource, published: dict[str, Any]) -> None:
    """Refuse what would run, but not as the original did."""
    if "mm_vision_tower" not in published:
        raise ConversionError(
            f"{source}/config.json has no `mm_vision_tower`: it is no checkpoint of the original GLaMM or LISA code."
        )
    supported = {
        "mm_use_im_start_end": (True,),
        "mm_vision_select_feature": ("patch", None),
        "hidden_act": ("silu", None),
        "rope_scaling": (None,),
    }
    for name, values in supported.items():
        if published.get(name) not in values:
            raise ConversionError(
                f"{source}/config.json: {name} is {published.get(name)!r}, but only {values[0]!r} can be converted."
            )


def _tokenizer(source: CheckpointSource):
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        source.file(name)  # from the Hub: into the same snapshot
    file = source.file("tokenizer.model")
    if file is None:
        raise ConversionError(f"{source} has no tokenizer.model.")
    try:
        tokenizer = load_legacy_tokenizer(file.parent)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if SEG_TOKEN not in tokenizer.get_vocab():
        raise ConversionError(f"{source}/added_tokens.json has no {SEG_TOKEN}: the checkpoint does not write masks.")
    return tokenizer
