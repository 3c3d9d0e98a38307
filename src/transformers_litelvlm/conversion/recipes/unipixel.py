"""UniPixel (PolyU-ChenLab/UniPixel-3B and -7B) -> one self-contained checkpoint of ours.

Names, shapes and sizes are those of the published files; nothing is retrained. What reads prompts that referring
segmentation does not have (points, boxes, remembered objects) is left out.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLImageProcessorPil, Sam2VideoConfig

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.sam2 import SAM2_SIZES_NAME, sam2_base_plus, sam2_renames
from transformers_litelvlm.conversion.recipes.shared import (
    ROTARY,
    Rules,
    load_tokenizer,
    qwen_conversion,
    read_chat_template,
    read_config,
    read_preprocessor_config,
)
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.models.masks.grounding import GroundingConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForReferringSegmentation,
)
from transformers_litelvlm.models.qwen2_5_vl_lite.processing_qwen2_5_vl_lite import Qwen2_5_VLLiteProcessor
from transformers_litelvlm.models.qwen2_5_vl_lite.unipixel_prompts import SEG_TOKEN
from transformers_litelvlm.models.qwen2_5_vl_lite.video_processing_qwen2_5_vl_lite import Qwen2_5_VLLiteVideoProcessor


SAM2_CONFIG = "sam2.1_hiera_b+"

_NO_REF = "reads points and boxes (<|ref|>), which referring segmentation does not have"
_NO_MEM = "reads masks of remembered objects (<|mem|>), which referring segmentation does not have"

# Both the names that transformers 4.53 writes (`visual.`, `model.`) and those of today.
RULES: Rules = [
    Rename(r"lm_head\.weight", "lm_head.weight"),
    Rename(r"(?:model\.)?visual\.(.+)", r"model.visual.\1"),
    Rename(r"model\.(?:language_model\.)?((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    Rename(r"seg_head\.([013])\.(weight|bias)", r"seg_head.\1.\2"),
    *sam2_renames(r"sam2\.", "mask_model."),
    Drop(r"(ref_encoder|ref_proj|ref_proj_single|ref_proj_double|tem_pe|tem_emb|tem_proj)\..+", _NO_REF),
    Drop(r"msk_proj\..+", _NO_MEM),
    ROTARY,
]


def unipixel_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How UniPixel becomes a [`Qwen2_5_VLLiteForReferringSegmentation`].

    Args:
        clip: folder or Hub id of a CLIP that becomes part of the checkpoint and guides pruning (`guidance="clip"`).
            Default: `guidance="intrinsic"`, without one.

    Raises:
        ConversionError: if a file is missing, or the config is not one of UniPixel.
    """
    published = read_config(source)
    config = unipixel_config(source, published)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        source.file(name)  # from the Hub: into the same snapshot
    processor = unipixel_processor(source, config)
    part = Part("unipixel", source, RULES)
    return qwen_conversion("UniPixel", Qwen2_5_VLLiteForReferringSegmentation, config, processor, part, clip)


def unipixel_config(source: CheckpointSource, published: dict[str, Any]) -> Qwen2_5_VLLiteConfig:
    """[`Qwen2_5_VLLiteConfig`] of a published UniPixel, from its config.json."""
    if "sam2_config" not in published or "seg_token_id" not in published:
        raise ConversionError(
            f"{source}/config.json has no `sam2_config` and `seg_token_id`: it is no checkpoint of UniPixel "
            f"(model_type {published.get('model_type')!r})."
        )
    if published.get("sam2_hidden_tokens", GroundingConfig.num_prompt_tokens) != GroundingConfig.num_prompt_tokens:
        raise ConversionError(
            f"{source}/config.json: sam2_hidden_tokens is {published['sam2_hidden_tokens']!r}, but only "
            f"{GroundingConfig.num_prompt_tokens} can be converted."
        )
    sizes = source.read_json(SAM2_SIZES_NAME)
    if sizes is None:
        if SAM2_CONFIG not in published["sam2_config"]:
            raise ConversionError(
                f"{source}/config.json: sam2_config is {published['sam2_config']!r}, but only {SAM2_CONFIG} is known."
            )
        sizes = sam2_base_plus(published.get("sam2_image_size", 768))
    own = {name: value for name, value in published.items() if not name.startswith("sam2_")}
    own.update(model_type=Qwen2_5_VLLiteConfig.model_type, architectures=None, mask_config=Sam2VideoConfig(**sizes))
    own.pop("auto_map", None)
    return Qwen2_5_VLLiteConfig.from_dict(own)


def unipixel_processor(source: CheckpointSource, config: Qwen2_5_VLLiteConfig) -> Qwen2_5_VLLiteProcessor:
    """Processor of UniPixel: Qwen2.5-VL's with the prompts and the preprocessing for masks."""
    tokenizer = load_tokenizer(source, config=config)
    if tokenizer.convert_tokens_to_ids(SEG_TOKEN) != config.seg_token_id:
        raise ConversionError(f"{source}: the tokenizer and config.json disagree about the id of {SEG_TOKEN}.")
    published = read_preprocessor_config(source)
    names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    settings = {name: published[name] for name in names if name in published}
    return Qwen2_5_VLLiteProcessor(
        image_processor=Qwen2VLImageProcessorPil.from_dict(published),
        tokenizer=tokenizer,
        video_processor=Qwen2_5_VLLiteVideoProcessor(**settings),
        chat_template=read_chat_template(source, tokenizer),
        mask_image_size=config.mask_config.image_size,
    )
