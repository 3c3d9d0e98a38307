"""InternVL in the layout of its original code, as a part of other checkpoints: names, config, tokenizer, processor.

Facts are those of transformers' own converter (`convert_internvl_weights_to_hf.py`) for models with a Qwen2 decoder.
"""

from __future__ import annotations

from typing import Any

from transformers import GotOcr2ImageProcessorPil, InternVLVisionConfig, PreTrainedConfig, Qwen2Config, Qwen2Tokenizer

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.shared import ROTARY, Rules
from transformers_litelvlm.conversion.renaming import Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.models.internvl_lite import InternVLLiteConfig, InternVLLiteProcessor
from transformers_litelvlm.models.upstream import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


_LAYER, _OUR_LAYER = r"vision_model\.encoder\.layers\.(\d+)\.", r"model.vision_tower.encoder.layer.\1."
_EMBEDDINGS, _OUR_EMBEDDINGS = r"vision_model\.embeddings\.", "model.vision_tower.embeddings."
_PROJECTOR = "model.multi_modal_projector."

INTERNVL_RULES: Rules = [
    Rename(r"language_model\.lm_head\.weight", "lm_head.weight"),
    Rename(r"language_model\.model\.((?:embed_tokens|layers|norm)\.(?!.*rotary_emb).+)", r"model.language_model.\1"),
    Rename(r"mlp1\.0\.(weight|bias)", _PROJECTOR + r"layer_norm.\1"),
    Rename(r"mlp1\.1\.(weight|bias)", _PROJECTOR + r"linear_1.\1"),
    Rename(r"mlp1\.3\.(weight|bias)", _PROJECTOR + r"linear_2.\1"),
    Rename(_EMBEDDINGS + "class_embedding", _OUR_EMBEDDINGS + "cls_token"),
    Rename(_EMBEDDINGS + "position_embedding", _OUR_EMBEDDINGS + "position_embeddings"),
    Rename(_EMBEDDINGS + r"patch_embedding\.(weight|bias)", _OUR_EMBEDDINGS + r"patch_embeddings.projection.\1"),
    Rename(_LAYER + r"ls([12])", _OUR_LAYER + r"lambda_\2"),
    Rename(_LAYER + r"norm1\.(weight|bias)", _OUR_LAYER + r"layernorm_before.\2"),
    Rename(_LAYER + r"norm2\.(weight|bias)", _OUR_LAYER + r"layernorm_after.\2"),
    Rename(_LAYER + r"(mlp\.fc[12])\.(weight|bias)", _OUR_LAYER + r"\2.\3"),
    Rename(_LAYER + r"attn\.proj\.(weight|bias)", _OUR_LAYER + r"attention.projection_layer.\2"),
    Rename(_LAYER + r"attn\.([qk]_norm)\.weight", _OUR_LAYER + r"attention.\2.weight"),
    Rename(_LAYER + r"attn\.qkv\.(weight|bias)", _OUR_LAYER + r"attention.*_proj.\2", split=("q", "k", "v")),
    ROTARY,
]

# What comes before and after the tiles of an image, stands for a visual token, and for a video in a prompt.
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<|video_pad|>",
}
# The original code has it as a template without a system prompt; frames of a video stand on lines of their own.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '' if loop.first else '\n' }}<IMG_CONTEXT>"
    "{% elif part['type'] == 'video' %}<|video_pad|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of the vision tower: their names -> ours.
_VISION_NAMES = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
# What else of a config there may be; the first is the default.
_KNOWN = {
    "llm_config.model_type": ("qwen2",),
    "ps_version": ("v2",),
    "downsample_ratio": (0.5,),
    "select_layer": (-1,),
    "use_thumbnail": (True,),
    "dynamic_image_size": (True,),
    "template": ("qwen_chat", "internlm2_chat"),
}
_VISION_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"),
    *("num_channels", "hidden_act", "norm_type", "layer_norm_eps", "initializer_range"),
)


def internvl_config(source: CheckpointSource, published: dict[str, Any], tokenizer: Any, **more: Any) -> Any:
    """[`InternVLLiteConfig`] of a published config.json, with `more` fields. Raises ConversionError for a language
    model or a layout that is not known."""
    text, vision = (published.get(name) for name in ("llm_config", "vision_config"))
    if not isinstance(vision, dict):
        raise ConversionError(f"{source}/config.json has no `vision_config`: it is no checkpoint of InternVL.")
    found = {**published, "llm_config.model_type": text.get("model_type") if isinstance(text, dict) else None}
    found["force_image_size"] = found.get("force_image_size") or vision.get("image_size")
    for name, known in {**_KNOWN, "force_image_size": (vision.get("image_size"),)}.items():
        if found.get(name, known[0]) not in known:
            raise ConversionError(
                f"{source}/config.json: {name} is {found[name]!r}, but of InternVL only models with "
                f"{' or '.join(map(repr, known))} there can be converted: those with Qwen2.5 as their language model, "
                "such as Sa2VA-4B, not Sa2VA-8B or -26B."
            )
    fields = {name: vision[name] for name in _VISION_FIELDS if name in vision}
    fields |= {ours: vision[name] for name, ours in _VISION_NAMES.items() if name in vision}
    base = PreTrainedConfig().to_dict()
    left_out = {*base, "quantization_config"} - {"tie_word_embeddings"}
    own = {name: value for name, value in text.items() if name not in left_out}
    sides = [fields.get(name, default) for name, default in (("image_size", 448), ("patch_size", 14))]
    if any(type(side) is not int or side < 1 for side in sides):
        raise ConversionError(f"{source}/config.json: image_size and patch_size of `vision_config` are {sides}.")
    return InternVLLiteConfig(
        vision_config=InternVLVisionConfig(**fields),
        text_config=Qwen2Config(**{**own, "eos_token_id": tokenizer.eos_token_id}),
        image_token_id=tokenizer.convert_tokens_to_ids(_TOKENS["context_image_token"]),
        image_seq_length=(sides[0] // sides[1] // 2) ** 2,
        dtype=published.get("torch_dtype", published.get("dtype")),
        # A head that is not stored is the table of embeddings, whatever the config says.
        tie_word_embeddings="language_model.lm_head.weight" not in source.tensors(),
        **more,
    )


def internvl_tokenizer(source: CheckpointSource) -> Any:
    """The tokenizer of a source, with the names by which the processor asks for its tokens. Not by the Auto class,
    which asks to run the code that config.json names."""
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        source.file(name)  # from the Hub: into the same snapshot
    tokenizer = Qwen2Tokenizer.from_pretrained(
        source.path_or_id, revision=source.pinned_revision, extra_special_tokens=_TOKENS
    )
    tokenizer.padding_side = "left"
    return tokenizer


def internvl_processor(published: dict[str, Any], config: Any, tokenizer: Any, **more: Any) -> InternVLLiteProcessor:
    """Processor of a published InternVL, with `more` arguments."""
    height, width = config.vision_config.image_size
    return InternVLLiteProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": height, "width": width},
            crop_to_patches=True,
            min_patches=published.get("min_dynamic_patch", 1),
            max_patches=published.get("max_dynamic_patch", 12),
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        ),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=CHAT_TEMPLATE,
        **more,
    )
