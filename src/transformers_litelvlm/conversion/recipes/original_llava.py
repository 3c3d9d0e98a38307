"""What the recipes of GLaMM and LISA share: checkpoints of the original LLaVA code with a SAM that writes masks.

They lack the CLIP that their vision tower is part of, and the text tower and projections that guide pruning. Names,
shapes and sizes are those of the published files; nothing is retrained.
"""

from __future__ import annotations

from typing import Any

from transformers import CLIPConfig, CLIPImageProcessorPil, LlamaConfig, SamConfig, SamImageProcessorPil

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.legacy_tokenizer import load_legacy_tokenizer
from transformers_litelvlm.conversion.recipes.llava import set_guidance
from transformers_litelvlm.conversion.recipes.sam import SAM_VIT_H
from transformers_litelvlm.conversion.recipes.shared import (
    GUIDANCE_RULES,
    ROTARY,
    Rules,
    generation_config,
    load_tokenizer,
    make_conversion,
    open_clip,
    read_clip_config,
    read_config,
    read_preprocessor_config,
)
from transformers_litelvlm.conversion.renaming import Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.grounding_prompts import PROMPTS
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


SEG_TOKEN = "[SEG]"

# Sizes of the SAM part, for checkpoints that are not ViT-H; the published ones do not have this file.
SAM_SIZES_NAME = "grounding_encoder_config.json"

LLAMA_RULES: Rules = [
    ROTARY,
    Rename(r"lm_head\.weight", "lm_head.weight"),
    Rename(r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    Rename(r"model\.mm_projector\.(?:0\.)?(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    Rename(r"model\.mm_projector\.2\.(weight|bias)", r"model.multi_modal_projector.linear_2.\1"),
    Rename(r"model\.text_hidden_fcs\.0\.([02])\.(weight|bias)", r"text_hidden_fcs.\1.\2"),
]
CLIP_RULES: Rules = [*GUIDANCE_RULES, Rename(r"vision_model\.(.+)", r"model.vision_tower.\1")]

LLAMA_FIELDS = (
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

# Other values would run, but not as the original did.
_SUPPORTED = {
    "mm_use_im_start_end": (True,),
    "mm_vision_select_feature": ("patch", None),
    "hidden_act": ("silu", None),
    "rope_scaling": (None,),
}


def grounding_conversion(
    name: str, title: str, rules: Rules, source: CheckpointSource, clip: str | None = None
) -> Conversion:
    """How an original checkpoint becomes a [`LlavaLiteForReferringSegmentation`].

    Args:
        name, title: of the kind of checkpoint, for the report (and for its prompts), and for the model card.
        rules: of its tensors.
        clip: folder or Hub id of its CLIP; default: the one that its config names.

    Raises:
        ConversionError: if a file is missing, or the config says something that this family does not have.
    """
    published = read_config(source)
    _check_original(source, published)
    clip_source = open_clip(clip or published["mm_vision_tower"])
    clip_config = read_clip_config(clip_source)
    tokenizer = _load_tokenizer(source)
    config = grounding_config(source, published, clip_config, tokenizer)
    set_guidance(config, clip_source, clip_config)
    return make_conversion(
        title,
        LlavaLiteForReferringSegmentation,
        config,
        grounding_processor(name, config, tokenizer, clip_source),
        [Part(name, source, rules), Part("clip", clip_source, CLIP_RULES)],
        generation_config(config.text_config),
    )


def grounding_config(
    source: CheckpointSource, published: dict[str, Any], clip_config: CLIPConfig, tokenizer: Any
) -> LlavaLiteConfig:
    """[`LlavaLiteConfig`] of an original checkpoint, from its config.json, its tensors and its tokenizer."""
    tensors = source.tensors()
    if "model.embed_tokens.weight" not in tensors:
        raise ConversionError(f"{source} has no model.embed_tokens.weight: is it a GLaMM or LISA checkpoint?")
    sizes = source.read_json(SAM_SIZES_NAME)
    text_fields = {name: published[name] for name in LLAMA_FIELDS if published.get(name) is not None}
    return LlavaLiteConfig(
        vision_config=clip_config.vision_config,
        text_config=LlamaConfig(vocab_size=tensors["model.embed_tokens.weight"].shape[0], **text_fields),
        mask_config=SamConfig(**(SAM_VIT_H if sizes is None else sizes["hf_config"])),
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
    name: str, config: LlavaLiteConfig, tokenizer: Any, clip_source: CheckpointSource
) -> LlavaLiteProcessor:
    """Processor of the kind `name`: CLIP's centre crop, SAM's padding, the prompts of the training."""
    side = config.mask_config.vision_config.image_size
    return LlavaLiteProcessor(
        image_processor=CLIPImageProcessorPil.from_dict(read_preprocessor_config(clip_source)),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        guidance_tokenizer=load_tokenizer(clip_source),
        mask_image_processor=SamImageProcessorPil(
            size={"longest_edge": side}, pad_size={"height": side, "width": side}
        ),
        **PROMPTS[name],
    )


def _check_original(source: CheckpointSource, published: dict[str, Any]) -> None:
    if "mm_vision_tower" not in published:
        raise ConversionError(
            f"{source}/config.json has no `mm_vision_tower`: it is no checkpoint of the original GLaMM or LISA code."
        )
    for name, values in _SUPPORTED.items():
        if published.get(name) not in values:
            raise ConversionError(
                f"{source}/config.json: {name} is {published.get(name)!r}, but only {values[0]!r} can be converted."
            )


def _load_tokenizer(source: CheckpointSource) -> Any:
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
