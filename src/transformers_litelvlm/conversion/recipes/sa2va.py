"""Sa2VA of Qwen (ByteDance/Sa2VA-Qwen2_5-VL-3B, -7B, -Qwen3-VL-4B) and of InternVL with a Qwen2.5 decoder (Sa2VA-1B,
-4B, -InternVL3-2B, -8B, -14B) -> one self-contained checkpoint of ours.

Names and shapes are those of the official classes; what is a constant of their code stands here as a setting. Nothing
is retrained, and code in the checkpoint is never run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.internvl import (
    INTERNVL_RULES,
    internvl_config,
    internvl_processor,
    internvl_tokenizer,
)
from transformers_litelvlm.conversion.recipes.sam2 import SAM2_SIZES_NAME, sam2_large, sam2_renames
from transformers_litelvlm.conversion.recipes.shared import (
    ROTARY,
    Rules,
    generation_config,
    make_conversion,
    qwen_conversion,
    read_chat_template,
    read_config,
    read_preprocessor_config,
)
from transformers_litelvlm.conversion.renaming import Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.models.internvl_lite import InternVLLiteForReferringSegmentation
from transformers_litelvlm.models.masks.grounding import GroundingConfig
from transformers_litelvlm.models.masks.sam2 import Sam2MaskConfig
from transformers_litelvlm.models.qwen2_5_vl_lite import (
    Qwen2_5_VLLiteConfig,
    Qwen2_5_VLLiteForReferringSegmentation,
    Qwen2_5_VLLiteProcessor,
    Qwen2_5_VLLiteVideoProcessor,
)
from transformers_litelvlm.models.qwen3_vl_lite import (
    Qwen3_VLLiteConfig,
    Qwen3_VLLiteForReferringSegmentation,
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
)


class Variant(NamedTuple):
    """Classes for a language model, and on which side of its final norm the state of [SEG] is read."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    processor: type[ProcessorMixin]
    video_processor: type
    before_norm: bool


# `text_config.model_type` -> variant. The official code takes the last of the hidden states that transformers 4.57
# returns, which is after the norm in Qwen2.5-VL and before it in Qwen3-VL.
VARIANTS = {
    "qwen2_5_vl_text": Variant(
        Qwen2_5_VLLiteConfig,
        Qwen2_5_VLLiteForReferringSegmentation,
        Qwen2_5_VLLiteProcessor,
        Qwen2_5_VLLiteVideoProcessor,
        before_norm=False,
    ),
    "qwen3_vl_text": Variant(
        Qwen3_VLLiteConfig,
        Qwen3_VLLiteForReferringSegmentation,
        Qwen3_VLLiteProcessor,
        Qwen3_VLLiteVideoProcessor,
        before_norm=True,
    ),
}

MODEL_TYPE = "sa2va_chat"
SEG_TOKEN = "[SEG]"

# What follows "<image>" in the official code, which deletes that word. First the one of its evaluation, then those of
# training, the last for whole sentences.
QUESTION_TEMPLATES = (
    "\n Please segment {expression} in this {medium}.",
    "\nCan you segment the {expression} in this {medium}?",
    "\nPlease segment {expression} in this {medium}.",
    "\nWhat is {expression} in this {medium}? Please respond with segmentation mask.",
    "\nWhat is {expression} in this {medium}? Please output segmentation mask.",
    "\nCould you provide a segmentation mask for the {expression} in this {medium}?",
    "\nPlease identify and segment the {expression} in this {medium}.",
    "\nWhere is the {expression} in this picture? Please respond with a segmentation mask.",
    "\nCan you highlight the {expression} in this {medium} with a segmentation mask?",
    "\n {expression} Please respond with a segmentation mask.",
)
ANSWER_TEMPLATES = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)

# Constants of the official code: pixels of a picture for the language model, frames of a video that it sees and that
# SAM 2 is prompted in, and how SAM 2 sees a picture. Its mean and standard deviation are ImageNet's in bfloat16.
MIN_PIXELS, MAX_PIXELS = 512 * 28 * 28, 2048 * 28 * 28
NUM_FRAMES = 5
MEDIA = {
    "pictures_as": "image",
    "num_frames": NUM_FRAMES,
    "frames": "first",
    "video_question": "\nPlease segment {expression}.",
    "mask_resampling": "bicubic",
}
GROUNDING_MEDIA = {**MEDIA, "first_resize": (28, 4 * 28 * 28, 16384 * 28 * 28)}
MASKS = {
    "blanks_absent": False,
    "num_prompted_frames": NUM_FRAMES,
    "remembers_in_bfloat16": True,
    "resizes_twice": True,
    "pixel_mean": [0.484375, 0.455078125, 0.40625],
    "pixel_std": [0.228515625, 0.2236328125, 0.224609375],
}
SAM2_SIDE = 1024

MASK_RULES: Rules = [
    Rename(r"text_hidden_fcs\.([02])\.(weight|bias)", r"seg_head.\1.\2"),
    *sam2_renames(r"grounding_encoder\.sam2_model\.", "mask_model."),
]
# Both the names that transformers writes since 4.52 and those before.
RULES: Rules = [
    Rename(r"model\.lm_head\.weight", "lm_head.weight"),
    Rename(r"model\.(?:model\.)?visual\.(.+)", r"model.visual.\1"),
    Rename(r"model\.model\.(?:language_model\.)?((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    *MASK_RULES,
    ROTARY,
]


def sa2va_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How Sa2VA becomes a [`Qwen2_5_VLLiteForReferringSegmentation`], [`Qwen3_VLLiteForReferringSegmentation`] or
    [`InternVLLiteForReferringSegmentation`].

    Args:
        clip: folder or Hub id of a CLIP that becomes part of the checkpoint and guides pruning (`guidance="clip"`), of
            a Qwen model only. Default: without one; the model guides itself.

    Raises:
        ConversionError: if a file is missing, or the config is not one of Sa2VA with a model that is known.
    """
    published = read_config(source)
    if published.get("model_type") == MODEL_TYPE and "llm_config" in published:
        return _of_internvl(source, published, clip)
    variant = variant_of(source, published)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        source.file(name)  # from the Hub: into the same snapshot
    # Not by the Auto class, which asks to run the code that config.json names.
    tokenizer = Qwen2Tokenizer.from_pretrained(source.path_or_id, revision=source.pinned_revision)
    config = sa2va_config(source, published, seg_token_id_of(source, tokenizer))
    processor = sa2va_processor(source, config, tokenizer)
    return qwen_conversion("Sa2VA", variant.model, config, processor, Part("sa2va", source, RULES), clip)


def _of_internvl(source: CheckpointSource, published: dict[str, Any], clip: str | None) -> Conversion:
    if clip is not None:
        raise ConversionError("--clip is not for a Sa2VA of InternVL, which always guides itself: leave it out.")
    tokenizer = internvl_tokenizer(source)
    # The state of [SEG] is that after the norm: the official code takes the last hidden state of a Qwen2.
    masks = mask_parts(_sam2_sizes(source), before_norm=False, seg_token_id=seg_token_id_of(source, tokenizer))
    del masks["tie_word_embeddings"]  # known from the weights
    config = internvl_config(source, published, tokenizer, **masks)
    processor = internvl_processor(published, config, tokenizer, **_prompts(config), grounding_media=MEDIA)
    part = Part("sa2va", source, [*INTERNVL_RULES, *MASK_RULES])
    model, generation = InternVLLiteForReferringSegmentation, generation_config(config.text_config)
    return make_conversion("Sa2VA", model, config, processor, [part], generation)


def variant_of(source: CheckpointSource, published: dict[str, Any]) -> Variant:
    """Which language model a published Sa2VA has. Raises ConversionError if it is none that is known; says what the
    checkpoint looks like."""
    text = published.get("text_config")
    language_model = text.get("model_type") if isinstance(text, dict) else None
    variant = VARIANTS.get(language_model)
    if variant is not None and published.get("model_type") == MODEL_TYPE:
        return variant
    if "llm_config" in published:
        found = "an InternVL without masks; its copies whose names end with -hf need no conversion"
    elif "sam2_config" in published:
        found = "a UniPixel: `litelvlm convert unipixel` converts it"
    elif "mm_vision_tower" in published or "vision_tower" in published:
        found = "a GLaMM, LISA or LLaVA: `litelvlm convert glamm`, `lisa` or `llava` converts it"
    elif variant is not None:
        found = "a stock Qwen model, which needs no conversion, and writes no masks"
    else:
        found = "no Sa2VA of Qwen2.5-VL, Qwen3-VL or InternVL"
    raise ConversionError(
        f"{source}/config.json (model_type {published.get('model_type')!r}, language model {language_model!r}) looks "
        f"like {found}."
    )


def seg_token_id_of(source: CheckpointSource, tokenizer: Any) -> int:
    """The id of [SEG], which the config does not say. Raises ConversionError if there is none."""
    seg_token_id = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    if seg_token_id is None:
        raise ConversionError(f"{source}: the tokenizer has no {SEG_TOKEN}; it is no checkpoint of Sa2VA.")
    return seg_token_id


def _sam2_sizes(source: CheckpointSource) -> dict[str, Any]:
    return source.read_json(SAM2_SIZES_NAME) or sam2_large(SAM2_SIDE)


def sa2va_config(source: CheckpointSource, published: dict[str, Any], seg_token_id: int) -> PreTrainedConfig:
    """Our config of a published Sa2VA with a Qwen model, from its config.json."""
    variant = variant_of(source, published)
    own = {name: value for name, value in published.items() if name not in ("auto_map", "template")}
    own.update(
        model_type=variant.config.model_type,
        architectures=None,
        text_config={**published["text_config"], "architectures": None},
        **mask_parts(_sam2_sizes(source), variant.before_norm, seg_token_id),
    )
    return variant.config.from_dict(own)


def mask_parts(sizes: dict[str, Any], before_norm: bool, seg_token_id: int) -> dict[str, Any]:
    """Fields of a config that make a model a Sa2VA, with the sizes of its SAM 2; `before_norm` as in [`Variant`]."""
    return {
        # Unlike in the base models, the head is stored, and is not the table of embeddings.
        "tie_word_embeddings": False,
        "seg_token_id": seg_token_id,
        "mask_config": Sam2MaskConfig(**{**sizes, **MASKS}),
        "grounding_config": GroundingConfig(
            pictures_as="image",
            reads="at",
            before_norm=before_norm,
            num_prompt_tokens=1,
            head_norm=False,
            head_activation="relu",
        ),
    }


def sa2va_processor(source: CheckpointSource, config: Any, tokenizer: Any) -> ProcessorMixin:
    """Processor of Sa2VA: the Qwen model's with the prompts and the preprocessing for masks."""
    variant = VARIANTS[config.text_config.model_type]
    published = read_preprocessor_config(source)
    names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    settings = {name: published[name] for name in names if name in published}
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return variant.processor(
        image_processor=Qwen2VLImageProcessorPil(**settings, size=size),
        tokenizer=tokenizer,
        video_processor=variant.video_processor(**settings),
        chat_template=read_chat_template(source, tokenizer),
        grounding_media=GROUNDING_MEDIA,
        **_prompts(config),
    )


def _prompts(config: Any) -> dict[str, Any]:
    """Arguments of a processor about masks that all variants have."""
    return {
        "mask_image_size": config.mask_config.image_size,
        "question_templates": QUESTION_TEMPLATES,
        "answer_templates": ANSWER_TEMPLATES,
        "seg_token": SEG_TOKEN,
        "normalize_expressions": False,
    }
